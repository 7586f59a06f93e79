"""A small training that tools/dist_train.sh starts on one host or several, to be watched and to be hurt."""
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ce_mm.datasets.shapes import make_shapes

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 300  # seconds, of whoever waits for something that must happen
MARK = "CE_MM_HOST"  # in the environment of all that a host runs: it tells whose a process is, whoever its parent
NOTICED = r"^\[rank\d+\]: |closing signal|exitcode"  # by a worker, or by its launcher

CONFIG = """
_base_ = ["{root}/configs/shapes/ce-resnet18_shapes.py"]
custom_imports = dict(
    imports=[*_base_.custom_imports.imports, "tools.evidence.reliability.weights_digest"], allow_failed_imports=False
)
custom_hooks = [*_base_.custom_hooks, dict(type="SyncBuffersHook"), dict(type="WeightsDigestHook")]
model = dict(backbone=dict(stem_channels=16, base_channels=16), head=dict(in_channels=128))
train_dataloader = dict(batch_size=8, dataset=dict(data_root="{data}/crops/train"))
val_dataloader = dict(dataset=dict(data_root="{data}/crops/val"))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs={epochs}, val_interval={epochs})
param_scheduler = dict(T_max={epochs})
default_hooks = dict(logger=dict(interval=1))
env_cfg = dict(dist_cfg=dict(timeout={timeout}))
"""


@dataclass(frozen=True)
class Host:
    """Where a part of the training runs: what stands in front of its command, and what its environment has besides."""

    prefix: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


class Training:
    """CE-ResNet-18, an eighth as wide as usual, on 64 crops of shapes, logging every step.

    Args:
        folder: takes the data (kept for the next training there), the config, the logs and the checkpoints.
        processes: on each host.
        hosts: one, or several that reach the first by the address in their environment's MASTER_ADDR.
        epochs: of 64 / (8 · all processes) steps.
        timeout: of the process group, in seconds.
    """

    def __init__(
        self, folder: Path, processes: int, hosts: Sequence[Host] = (Host(),), epochs: int = 1000, timeout: int = 60
    ) -> None:
        self.hosts = hosts
        self.processes = processes
        self.work_dir = folder / "work_dir"
        self.logs = [folder / f"host{number}.log" for number in range(len(hosts))]
        self.config = folder / "launched_training.py"  # a name that nobody else has
        data = make_shapes(folder / "shapes", 40, 4, num_crops=64)
        self.config.write_text(CONFIG.format(root=ROOT, data=data, epochs=epochs, timeout=timeout))
        self.marks = [f"{uuid.uuid4()}-{number}" for number in range(len(hosts))]
        self.launchers: list[subprocess.Popen] = []

    def __enter__(self) -> "Training":
        try:
            port = str(free_port())
            for number in range(len(self.hosts)):
                self._launch(number, port)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _launch(self, number: int, port: str) -> None:
        host = self.hosts[number]
        place = dict(NNODES=str(len(self.hosts)), NODE_RANK=str(number), PORT=port, **host.environment)
        command = [*host.prefix, *dist_script("train"), self.config, str(self.processes), "--work-dir", self.work_dir]
        variables = environment(**place, **{MARK: self.marks[number]})
        with self.logs[number].open("w") as output:
            self.launchers.append(subprocess.Popen(command, env=variables, stdout=output, stderr=subprocess.STDOUT))

    def __exit__(self, *exception: object) -> None:
        for host in range(len(self.hosts)):
            while left := self.everything_on(host):  # again, for what they have started meanwhile
                for pid in left:
                    kill(pid)
                time.sleep(0.01)
        for launcher in self.launchers:
            launcher.wait()

    def wait_for_steps(self, count: int) -> None:
        """Until the log shows that many steps.

        Raises:
            RuntimeError: the training ended before.
            TimeoutError: nothing of the kind happened.
        """

        def taken() -> bool:
            log = self.logs[0].read_text()
            if any(launcher.poll() is not None for launcher in self.launchers):
                raise RuntimeError(f"the training ended too early; its end:\n{log[-3000:]}")
            return len(re.findall(r"Epoch\(train\)", log)) >= count

        _wait(taken, f"{count} steps")

    def wait_until_noticed(self) -> float:
        """Until the first host's log tells that something is wrong; returns after how many seconds.

        Raises:
            TimeoutError: it does not.
        """
        return _wait(lambda: re.search(NOTICED, self.logs[0].read_text(), re.M), "an error in the log")

    def workers(self) -> dict[int, int]:
        """Rank -> process id."""
        ranks = {}
        for launcher in self.launchers:
            for pid in _children(launcher.pid):
                if "RANK" in (variables := _environment(pid)):
                    ranks[int(variables["RANK"])] = pid
        return dict(sorted(ranks.items()))

    def everything_on(self, host: int) -> list[int]:
        """The launcher, its workers and what these have started."""
        mark = self.marks[host]
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        return [pid for pid in pids if _environment(pid).get(MARK) == mark]

    def wait_for_the_end(self, pids: Iterable[int]) -> float:
        """Until none of these processes is left; returns after how many seconds.

        Raises:
            TimeoutError: some are.
        """
        pids = list(pids)
        return _wait(lambda: not any(self._runs(pid) for pid in pids), "the end of the processes")

    def _runs(self, pid: int) -> bool:
        for launcher in self.launchers:
            launcher.poll()  # or it would stay as a zombie
        return Path(f"/proc/{pid}").exists()


def dist_script(task: str) -> list[str | Path]:
    """The beginning of a command line of tools/dist_train.sh or dist_test.sh."""
    return ["bash", ROOT / "tools" / f"dist_{task}.sh"]


def environment(**more: str) -> dict[str, str]:
    """In which the script finds this Python, and the config the hook of this package."""
    return os.environ | dict(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", PYTHONPATH=str(ROOT)) | more


def kill(pid: int) -> None:
    """With SIGKILL, unless it has ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    """One that nobody listens on here, and that Linux gives to nobody who asks for any."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("", port))
            return port
    raise OSError("none of a hundred ports from 20000 to 31999 is free")


def _wait(until: Callable[[], object], what: str) -> float:
    begin = time.monotonic()
    while not until():
        if time.monotonic() - begin > PATIENCE:
            raise TimeoutError(f"{what} did not come within {PATIENCE} s")
        time.sleep(0.1)
    return time.monotonic() - begin


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            yield from map(int, task.read_text().split())


def _environment(pid: int) -> dict[str, str]:
    """What it was started with; nothing of a process that has ended or belongs to somebody else."""
    process = Path(f"/proc/{pid}")
    try:
        for _ in range(1000):  # in the middle of exec, Linux shows neither arguments nor environment
            (process / "exe").readlink()  # which only a process with a program has: no zombie, not the kernel's own
            arguments = (process / "cmdline").read_bytes()
            variables = (process / "environ").read_text(errors="replace")
            if variables or (arguments and arguments == (process / "cmdline").read_bytes()):
                break
            time.sleep(0.001)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
    return dict(entry.split("=", 1) for entry in variables.split("\0") if "=" in entry)
