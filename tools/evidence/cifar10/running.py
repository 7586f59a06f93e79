"""All trainings of the study, on as many processes as asked for; what is finished is kept, what is not goes on."""
import json
import math
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from torch import multiprocessing
from tqdm import tqdm

from tools.evidence.cifar10.measuring import measure
from tools.evidence.cifar10.network import VARIANTS
from tools.evidence.cifar10.pictures import Cifar10
from tools.evidence.cifar10.training import RECIPES, train

#: The question of the study: its seeds are a number of their own.
MAIN_PAIR = ("BN+ReLU", "BN+CE+ReLU")


def plan(variants: Sequence[str], seeds: int, other_seeds: int = 1) -> list[tuple[str, int]]:
    """(variant, seed) of every training, seed by seed: the main pair first, then the others.

    Args:
        variants: names of VARIANTS.
        seeds: how many the main pair has.
        other_seeds: how many each of the others has.

    Raises:
        ValueError: a name is not in VARIANTS, or a number of seeds is below 1.
    """
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no variant; expected some of {', '.join(VARIANTS)}")
    if min(seeds, other_seeds) < 1:
        raise ValueError(f"expected at least one seed, got {min(seeds, other_seeds)}")
    main = [(name, seed) for seed in range(seeds) for name in MAIN_PAIR if name in variants]
    return main + [(name, seed) for seed in range(other_seeds) for name in variants if name not in MAIN_PAIR]


def folder_of(out: Path, variant: str, seed: int) -> Path:
    """Where the training of a variant from a seed is kept."""
    return out / f"{variant.lower()}-seed{seed}"


def run_all(
    runs: Sequence[tuple[str, int]],
    recipe: str,
    data: Cifar10,
    out: Path,
    threshold: float,
    workers: int = 1,
    minutes: float = math.inf,
    device: str = "cpu",
) -> dict[str, list[dict]]:
    """Do the trainings, each in a process with its share of the cores, and measure what came of them.

    Args:
        runs: (variant, seed), done in this order.
        recipe: a name of RECIPES.
        data: the data set, which the processes share.
        out: a folder; each training has a folder of its own in it.
        threshold: of inhibited channels.
        workers: how many trainings at a time.
        minutes: no epoch begins later than this.
        device: where to train.

    Returns:
        For each variant with a finished training what was measured of each (see :func:`measure`), with its seed, and
        the record of its epochs as ``curve``.

    Raises:
        ValueError: workers is below 1.
    """
    if workers < 1:
        raise ValueError(f"expected at least one worker, got {workers}")
    until = time.time() + 60 * minutes
    threads = max(torch.get_num_threads() // workers, 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _prepare, (data, threads)) as pool:
        pending = [
            pool.submit(_run, *run, recipe, folder_of(out, *run), threshold, until, device) for run in runs
        ]
        try:
            for future in tqdm(as_completed(pending), "trainings", len(pending)):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # an epoch takes minutes; what it has done so far is not kept anyway
            raise
    results: dict[str, list[dict]] = {}
    for (variant, _), future in zip(runs, pending, strict=True):
        if future.result() is not None:
            results.setdefault(variant, []).append(future.result())
    return results


_data: Cifar10


def _prepare(data: Cifar10, threads: int) -> None:
    """Once in every process: the data set, and how many cores are its own."""
    global _data
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process stops the others
    torch.set_num_threads(threads)
    _data = data


def _run(
    variant: str, seed: int, recipe: str, folder: Path, threshold: float, until: float, device: str
) -> dict | None:
    if not train(variant, seed, RECIPES[recipe], _data, folder, threshold, until, device):
        return None
    curve = json.loads((folder / "curve.json").read_text())
    return measure(variant, seed, RECIPES[recipe], _data, folder, threshold, device) | dict(seed=seed, curve=curve)
