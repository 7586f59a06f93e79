"""The demo's chain for a norm and a seed, as commands that may be stopped anywhere and go on when they run again."""
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from tqdm import tqdm

from ce_mm.analysis.training_curve import read_scalars

#: Norm to the demo's configs with it, which differ in nothing else.
CONFIGS = dict(
    BN=("configs/shapes/resnet18_shapes.py", "configs/shapes/mask-rcnn_r18_fpn_shapes.py"),
    CE=("configs/shapes/ce-resnet18_shapes.py", "configs/shapes/mask-rcnn_ce-r18_fpn_shapes.py"),
)
PRETRAIN_EPOCHS = 6  # as the configs say
DATA = Path("data/shapes")
#: What a detector is evaluated on: how many pictures, in the "val" of which folder. The first are the demo's; by so few
#: a difference of a point can be chance.
EVALUATED = {80: DATA, 1000: Path("data/shapes-1000")}
SHAPES = (
    ["shapes", str(DATA), "--train", "800", "--val", "80", "--crops", "4500"],
    ["shapes", str(EVALUATED[1000]), "--train", "1", "--val", "1000", "--crops", "6", "--seed", "1"],
)
LOOK = 0.5  #: seconds between two looks at whether a command has ended or is to be stopped


@dataclass(frozen=True)
class Chain:
    """One norm, one seed: a pretraining, and a detector for each number of epochs, all in one folder."""

    norm: str
    seed: int
    epochs: tuple[int, ...]
    folder: Path

    def detector(self, epochs: int) -> Path:
        """Where the detector of so many epochs is trained and evaluated."""
        return self.folder / f"detector-{epochs}"

    def commands(self) -> Iterator[list[str]]:
        """What is left to do, one command after the other; each is asked for when the one before has ended."""
        classifier, detector = CONFIGS[self.norm]
        pretrain = self.folder / "pretrain"
        if not _trained(pretrain, PRETRAIN_EPOCHS):
            yield ["train", classifier, *_options(pretrain, self.seed)]
        start = f"model.backbone.init_cfg.checkpoint={pretrain / f'epoch_{PRETRAIN_EPOCHS}.pth'}"
        for epochs in self.epochs:
            folder = self.detector(epochs)
            checkpoint = str(folder / f"epoch_{epochs}.pth")
            length = [f"train_cfg.max_epochs={epochs}", f"param_scheduler.1.T_max={epochs}"]
            if not _trained(folder, epochs):
                yield ["train", detector, *_options(folder, self.seed), start, *length]
            for pictures, data in EVALUATED.items():
                metrics, found = _metrics(folder, pictures), str(folder / f"found-{pictures}.pkl")
                annotations = str(data / "annotations/val.json")
                if not metrics.exists():
                    of = [f"test_dataloader.dataset.data_root={data}/", f"test_evaluator.ann_file={annotations}"]
                    at = ["--work-dir", str(folder / "test"), "--out", found]
                    yield ["test", detector, checkpoint, *at, "--cfg-options", *of]
                    yield ["eval", annotations, found, "--config", detector, "--out", str(metrics)]


def chains(work: Path, seeds: int, epochs: Sequence[int]) -> list[Chain]:
    """All chains, seed by seed.

    Raises:
        ValueError: no seed, or a number of epochs below 1.
    """
    if seeds < 1 or not epochs or min(epochs) < 1:
        raise ValueError(f"expected at least one seed, and epochs of 1 or more; got {seeds} and {list(epochs)}")
    lengths = tuple(sorted(set(epochs)))
    pairs = [(norm, seed) for seed in range(seeds) for norm in CONFIGS]
    return [Chain(norm, seed, lengths, work / f"{norm.lower()}-seed{seed}") for norm, seed in pairs]


def run_all(runs: Sequence[Chain], workers: int, minutes: float) -> int:
    """Do what is left of the chains, ``workers`` at a time, for so long; how many are finished then.

    Raises:
        ValueError: workers is below 1, or a command failed; the text names its log.
    """
    if workers < 1:
        raise ValueError(f"expected at least one worker, got {workers}")
    until, stop = time.monotonic() + 60 * minutes, Event()
    for shapes in SHAPES:
        _call(shapes, Path(f"{shapes[1]}.log"), 1, lambda: False)
    threads = max((os.cpu_count() or 1) // workers, 1)

    def over() -> bool:
        return stop.is_set() or time.monotonic() >= until

    with ThreadPoolExecutor(workers) as pool:
        pending = [pool.submit(_run, chain, threads, over) for chain in runs]
        try:
            return sum(future.result() for future in tqdm(as_completed(pending), "chains", len(pending)))
        except BaseException:  # Ctrl-C, SIGTERM, a chain that failed: no training is left to itself
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def read_results(runs: Sequence[Chain]) -> dict[str, dict[str, list[dict]]]:
    """Epochs of the detector -> norm -> for each seed that both norms have finished: the seed; ``metrics``, how many
    pictures -> the twelve numbers of box and mask; and the AP on the demo's pictures after each epoch as ``curve``.
    """
    finished = {
        (epochs, chain.norm, chain.seed): chain.detector(epochs)
        for chain in runs
        for epochs in chain.epochs
        if all(_metrics(chain.detector(epochs), pictures).exists() for pictures in EVALUATED)
    }
    results: dict[str, dict[str, list[dict]]] = {}
    for (epochs, norm, seed), folder in finished.items():
        if all((epochs, other, seed) in finished for other in CONFIGS):
            metrics = {pictures: json.loads(_metrics(folder, pictures).read_text()) for pictures in EVALUATED}
            curve = [
                dict(box=row["coco/bbox_mAP"], mask=row["coco/segm_mAP"])
                for row in read_scalars(folder)[1]
                if "coco/bbox_mAP" in row
            ]
            row = dict(seed=seed, metrics=metrics, curve=curve)
            results.setdefault(str(epochs), {}).setdefault(norm, []).append(row)
    return results


def _options(folder: Path, seed: int) -> list[str]:
    return ["--work-dir", str(folder), "--resume", "--cfg-options", f"randomness.seed={seed}"]


def _metrics(folder: Path, pictures: int) -> Path:
    return folder / f"metrics-{pictures}.json"


def _trained(folder: Path, epochs: int) -> bool:
    """Whether the last checkpoint, which is named after it is written, is that of the last epoch."""
    with suppress(FileNotFoundError):
        return (folder / "last_checkpoint").read_text().strip().endswith(f"epoch_{epochs}.pth")
    return False


def _run(chain: Chain, threads: int, over: Callable[[], bool]) -> bool:
    chain.folder.mkdir(parents=True, exist_ok=True)
    return all(_call(command, chain.folder / "log.txt", threads, over) for command in chain.commands())


def _call(command: Sequence[str], log: Path, threads: int, over: Callable[[], bool]) -> bool:
    """Run a command of ce_mm; whether it ended before the time was over. What is killed loses its last epoch alone."""
    if over():
        return False
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | dict(OMP_NUM_THREADS=str(threads), PYTHONWARNINGS="ignore")
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ce_mm", *command], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                if over():
                    return False
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        failed = f"`ce_mm {' '.join(command)}` failed with exit code {process.returncode}"
        raise ValueError(f"{failed}; its log: {log}")
    return True
