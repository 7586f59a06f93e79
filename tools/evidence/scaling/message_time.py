"""Does a message cost α + m/β? All-reduces of growing size, timed between two processes of this machine."""
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from tools.evidence.scaling.messages import process_group, start

SIZES = tuple(8 * 4**power for power in range(11))  # bytes: 8 to 8 MiB


@dataclass(frozen=True)
class Line:
    """Times, and the line α + m/β through them."""

    sizes: tuple[int, ...]  #: bytes
    seconds: tuple[float, ...]
    latency: float  #: α, seconds
    bandwidth: float  #: β, bytes a second

    def foretold(self, size: int) -> float:
        """Seconds of a message of ``size`` bytes."""
        return self.latency + size / self.bandwidth


def fit(sizes: Sequence[int], seconds: Sequence[float]) -> Line:
    """The line with the least squares of the relative errors."""
    slope, latency = np.polyfit(sizes, seconds, 1, w=1 / np.asarray(seconds))
    return Line(tuple(sizes), tuple(seconds), float(latency), float(1 / slope))


def measure(sizes: Sequence[int] = SIZES, repeats: int = 200) -> Line:
    """Time all-reduces between two processes with gloo.

    Args:
        sizes: bytes of the messages, multiples of 8.
        repeats: of each size; the fastest counts, as the others were disturbed by other work on the machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        start(_measure, 2, tuple(sizes), repeats, folder)
        seconds = json.loads((Path(folder) / "seconds").read_text(encoding="ascii"))
    return fit(sizes, seconds)


def _measure(rank: int, sizes: tuple[int, ...], repeats: int, folder: str) -> None:
    with process_group(rank, 2, folder):
        seconds = [_all_reduce(size // 8, repeats) for size in sizes]
    if rank == 0:
        (Path(folder) / "seconds").write_text(json.dumps(seconds), encoding="ascii")


def _all_reduce(elements: int, repeats: int) -> float:
    message, times = torch.zeros(elements, dtype=torch.float64), []
    for _ in range(repeats):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(message)
        times.append(time.perf_counter() - start)
    return min(times)
