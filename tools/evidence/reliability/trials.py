"""Kill a training again and again, resume it each time, and hold the end against a training that nobody killed.

Each run is ``tools/train.py CONFIG --resume`` in a process of its own, forked from a server that has imported
everything once (which takes seconds); a run on several ranks is as many processes.
"""
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from mmengine.runner import find_latest_checkpoint
from PIL import Image

from ce_mm.checkpoints.reading import read_checkpoint
from tools.evidence.reliability.deaths import dying_while_saving, of_any_run
from tools.evidence.reliability.launched import free_port

CONFIG = Path(__file__).resolve().parent / "small_training.py"
EPOCH_LENGTH = 4  # iterations, of four pictures
IN_A_STEP, HALF_WRITTEN = "in a step", "when a file is seen half-written"
#: Twenty kills. A number: at that system call, of those by which a checkpoint is saved and named and an old one goes.
SERIES = (IN_A_STEP, 0, HALF_WRITTEN, 1, IN_A_STEP, 2, 3, IN_A_STEP, 4, HALF_WRITTEN,
          5, IN_A_STEP, 6, 7, IN_A_STEP, 8, HALF_WRITTEN, 9, IN_A_STEP, 10)  # fmt: skip
#: What must be equal in the end, wherever a checkpoint has it.
STATES = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers")

_IMPORTS = ("ce_mm.launching", "mmpretrain.datasets", "mmpretrain.engine", "mmpretrain.evaluation",
            "mmpretrain.models", "mmpretrain.visualization", "tools.evidence.reliability.deaths")  # fmt: skip


@dataclass
class Kill:
    """One kill, and what was found after it.

    Attributes:
        moment: as asked for.
        place: the system call that it died at, or the last iteration that it logged.
        left_half_written: temporary files that it left behind.
        resumes_from: the checkpoint that the next run starts from.
    """

    moment: str
    place: str
    left_half_written: list[str]
    resumes_from: str | None


@dataclass
class Outcome:
    """What a series of kills came to."""

    kills: list[Kill] = field(default_factory=list)
    checkpoints_read: int = 0
    differences: list[str] = field(default_factory=list)
    values_compared: int = 0


def run_trials(
    moments: list[str | int], folder: Path, options: tuple[str, ...] = (), ranks: int = 1, seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> Outcome:  # fmt: skip
    """Train once without a kill, and once with a kill at each of ``moments``, in turn, resumed after each.

    Args:
        moments: ``IN_A_STEP``, at random; ``HALF_WRITTEN``, as soon as one is seen; a number, at that system call.
            Always in the second epoch of a run, after it has saved one checkpoint.
        folder: where everything is written; must be empty.
        options: ``--cfg-options`` of all runs.
        ranks: processes that train together; all of them are killed.
        seed: of the draws.
        progress: called after every kill.

    Raises:
        RuntimeError: a run failed, or ended before it could be killed.
        ce_mm.checkpoints.reading.CheckpointError: a checkpoint that could be seen is not whole.
    """
    folder = folder.resolve()
    write_pictures(folder / "pictures")
    epochs = 2 * len(moments) + 2  # a run that is killed gets two epochs further at most
    whole = _Training(folder, "whole", epochs, options, ranks)
    whole.run()
    killed = _Training(folder, "killed", epochs, options, ranks)
    outcome, draw = Outcome(), random.Random(seed)
    for moment in moments:
        outcome.kills.append(killed.run_and_kill(moment, draw))
        progress()
    killed.run()
    outcome.checkpoints_read = len(killed.read)
    ends = [read_checkpoint(training.work_dir / f"epoch_{epochs}.pth") for training in (whole, killed)]
    for state in STATES:
        for name, ours, theirs in pairs(state, *(end.get(state) for end in ends)):
            outcome.values_compared += 1
            if not same(ours, theirs):
                outcome.differences.append(name)
    return outcome


def write_pictures(folder: Path) -> None:
    """32 pictures of noise to train on and 8 to validate on, in four classes."""
    noise = np.random.default_rng(0)
    for part, count in (("train", 4 * EPOCH_LENGTH), ("val", 8)):
        for i in range(count):
            picture = folder / part / f"class{i % 4}" / f"{i}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(256, size=(40, 40, 3), dtype=np.uint8)).save(picture)


def pairs(name: str, ours: object, theirs: object) -> Iterator[tuple[str, object, object]]:
    """The values at the same places of two trees of dicts and lists; what only one has is a pair with None."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in ours.keys() | theirs.keys():
            yield from pairs(f"{name}.{key}", ours.get(key), theirs.get(key))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from pairs(f"{name}.{i}", *pair)
    else:
        yield name, ours, theirs


def same(ours: object, theirs: object) -> bool:
    """Whether two values are equal to the last bit."""
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.equal(theirs)
    return type(ours) is type(theirs) and ours == theirs


class _Training:
    """One training, run after run, and all its checkpoints that could be seen."""

    def __init__(self, folder: Path, name: str, epochs: int, options: tuple[str, ...], ranks: int) -> None:
        self.folder, self.ranks = folder, ranks
        self.work_dir = folder / name
        self.arguments = [str(CONFIG), "--work-dir", str(self.work_dir), "--resume", "--cfg-options",
                          f"train_cfg.max_epochs={epochs}", *options]  # fmt: skip
        self.runs = 0
        self.read: set[tuple[str, int, int]] = set()

    def run(self) -> None:
        """Run to the end."""
        processes, log = self._start(None)
        while any(process.is_alive() for process in processes):
            if any(process.exitcode for process in processes):
                for process in processes:  # the others would wait for the one that failed
                    process.kill()
            self._read_new()
            time.sleep(0.01)
        if any(process.exitcode != 0 for process in processes):
            raise RuntimeError(f"a training failed:\n{log.read_text()[-4000:]}")
        self._read_new()

    def run_and_kill(self, moment: str | int, draw: random.Random) -> Kill:
        """Run, kill, and look at what is left."""
        if moment == HALF_WRITTEN:
            before = set(self._half_written())
            return self._kill(
                moment, lambda log: _iterations(log) > EPOCH_LENGTH and not before.issuperset(self._half_written())
            )
        if moment == IN_A_STEP:
            iterations, pause = EPOCH_LENGTH + draw.randint(1, EPOCH_LENGTH), draw.uniform(0, 0.05)
            return self._kill(moment, lambda log: _iterations(log) >= iterations, pause)
        return self._kill(f"at call {moment} of saving", lambda log: False, call=moment)

    def _kill(
        self, moment: str, has_come: Callable[[Path], bool], pause: float = 0, call: int | None = None
    ) -> Kill:
        note = self.folder / "death.txt"
        note.unlink(missing_ok=True)
        last = self._last()
        second = 2 if last is None else 2 + int(re.search(r"epoch_(\d+)", last.name)[1])
        processes, log = self._start(None if call is None else (f"epoch_{second}.pth", call, note))
        while processes[0].is_alive() and not has_come(log):
            if moment != HALF_WRITTEN:  # which leaves no time for reading
                self._read_new()
            time.sleep(0.001)
        time.sleep(pause)
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        if processes[0].exitcode != -signal.SIGKILL:
            raise RuntimeError(f"a training ended before it was killed {moment}:\n{log.read_text()[-4000:]}")
        left = sorted(of_any_run(path.name) for path, _ in self._half_written())
        self._read_new()
        last = self._last()
        if last is not None:
            read_checkpoint(last)
        place = note.read_text() if note.exists() else _last_iteration(log)
        return Kill(moment, place, left, last and last.name)

    def _start(self, death: tuple[str, int, Path] | None) -> tuple[list[BaseProcess], Path]:
        self.runs += 1
        log = self.folder / f"{self.work_dir.name}_{self.runs}.log"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(_IMPORTS))
        port = free_port()
        processes = []
        for rank in range(self.ranks):
            place = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=self.ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            arguments = [*self.arguments, *(("--launcher", "pytorch") if self.ranks > 1 else ())]
            process = context.Process(
                target=_train, args=(arguments, self.folder, log if rank == 0 else Path(os.devnull), place,
                                     death if rank == 0 else None),
            )  # fmt: skip
            process.start()
            processes.append(process)
        return processes, log

    def _last(self) -> Path | None:
        """What mmengine resumes from."""
        if not (self.work_dir / "last_checkpoint").exists():
            return None
        return Path(find_latest_checkpoint(str(self.work_dir)))

    def _half_written(self) -> Iterator[tuple[Path, int]]:
        for path in self.work_dir.glob(".*.tmp"):
            with suppress(FileNotFoundError):  # moved into place meanwhile
                yield path, path.stat().st_mtime_ns

    def _read_new(self) -> None:
        for path in self.work_dir.glob("*.pth"):
            try:
                status = path.stat()
                seen = (path.name, status.st_ino, status.st_mtime_ns)
                if seen not in self.read:
                    read_checkpoint(path)
                    self.read.add(seen)
            except Exception:
                if path.exists():  # else it has been superseded since
                    raise


def _train(
    arguments: list[str], folder: Path, log: Path, place: dict, death: tuple[str, int, Path] | None
) -> None:
    os.environ |= {key: str(value) for key, value in place.items()}
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from ce_mm.launching import launch

    with nullcontext() if death is None else dying_while_saving(*death):
        sys.exit(launch("train", arguments))


def _iterations(log: Path) -> int:
    return log.read_text().count("Epoch(train)") if log.exists() else 0


def _last_iteration(log: Path) -> str:
    text = log.read_text() if log.exists() else ""
    places = re.findall(r"Epoch\(train\)\s+(\[\d+\]\[\s*\d+/\d+\])", text)
    return f"after {places[-1]}" if places else "before the first iteration"
