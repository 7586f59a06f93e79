"""Does training leave anything behind? A long loop of steps with CE, and what the process holds at every hundredth.

Five measures, from the exact to the one that users see: Python objects and tensors that the garbage collector knows,
blocks of Python's own allocator, bytes that the C library has handed out (among them PyTorch's tensors on a CPU, and
what autograd keeps in C++), and the resident memory of the process, which moves by pages and by what the allocator
keeps for later.
"""
import ctypes
import gc
import os
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn
from tqdm import trange

from ce_mm.layers import CENorm
from ce_mm.ops import RELU

#: What a loop may gain from its first thousand steps to its last and still be flat. In 10,000 steps that is 9000 steps:
#: if each left behind a tensor of one number, it would be 9000 tensors, which take 64 bytes each, 562 KiB. What is
#: allowed above nothing is what interpreter and allocators settle by in such a time.
TOLERANCE = dict(objects=10, tensors=0, blocks=1000, allocated=64 * 1024, resident=2 * 1024 * 1024)
MEASURES = tuple(TOLERANCE)


@dataclass(frozen=True)
class Memory:
    """What the process holds at one moment."""

    step: int
    objects: int  #: that Python's garbage collector tracks, made since the loop began
    tensors: int  #: among them
    blocks: int  #: of Python's allocator
    allocated: int  #: bytes that the C library has handed out
    resident: int  #: bytes of the process in memory


class EnduranceNet(nn.Module):
    """A small classifier with three CE layers: on BN with max pool, on BN with the residual add, and on GN."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.norm1 = CENorm(16, max_pool=True)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm2 = CENorm(16)
        self.conv3 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.norm3 = CENorm(32, norm=dict(type="GN", num_groups=4))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """From pictures (N, 3, H, W) to logits (N, 10)."""
        x = self.norm1(self.conv1(x), rectifier=RELU)
        x = self.norm2(self.conv2(x), residual=x, rectifier=RELU)
        x = self.norm3(self.conv3(x), rectifier=RELU)
        return self.head(x.mean((2, 3)))


Batch = tuple[Tensor, Tensor]


def fixed_batches() -> Iterator[Batch]:
    """Pictures of one shape, 8×3×32², without end."""
    while True:
        yield torch.randn(8, 3, 32, 32), torch.randint(10, (8,))


def changing_batches() -> Iterator[Batch]:
    """Another number (1 to 8) and size (16², 24² or 32²) of pictures at every step, without end."""
    while True:
        samples, size = int(torch.randint(1, 9, ())), 8 * int(torch.randint(2, 5, ()))
        yield torch.randn(samples, 3, size, size), torch.randint(10, (samples,))


@dataclass(frozen=True)
class Loop:
    """A kind of training."""

    batches: Callable[[], Iterator[Batch]]
    evaluate_every: int  #: after how many steps each the network runs once in eval mode; 0 for never


LOOPS = {
    "8 pictures of 32²": Loop(fixed_batches, evaluate_every=0),
    "changing batches, evaluations between": Loop(changing_batches, evaluate_every=50),
}


def train(
    loop: Loop,
    steps: int,
    warmup: int,
    interval: int = 100,
    network: nn.Module | None = None,
    progress: str | None = None,
) -> list[Memory]:
    """Train for ``warmup`` + ``steps`` steps, and look at the memory after the warm-up and after every ``interval``.

    Args:
        loop: what kind.
        steps: that count.
        warmup: steps before the first that counts, in which caches of PyTorch and the allocator fill.
        interval: steps between two looks.
        network: from pictures to logits; None makes an :class:`EnduranceNet`.
        progress: what the progress bar is called, on stderr; None shows none.

    Returns:
        1 + steps // interval looks at the memory, the first at step 0.

    Raises:
        OSError: the system has no /proc, or no C library with mallinfo2.
    """
    # The looks go to a place made beforehand: as objects of their own they would be among what the loop leaves behind.
    looks = array("q", bytes(8 * len(MEASURES) * (1 + steps // interval)))
    gc.freeze()  # what is there by now is not counted, nor gone through at every look
    try:
        _run(loop, steps, warmup, interval, EnduranceNet() if network is None else network, progress, looks)
    finally:
        gc.unfreeze()
    rows = zip(*[iter(looks)] * len(MEASURES), strict=True)
    return [Memory(interval * index, *row) for index, row in enumerate(rows)]


def _run(
    loop: Loop, steps: int, warmup: int, interval: int, network: nn.Module, progress: str | None, looks: array
) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    batches = loop.batches()
    for step in trange(-warmup, steps, desc=progress, disable=None if progress else True, leave=False):
        if step == 0:
            _look(looks, 0)
        _step(network.train(), optimizer, *next(batches))
        if loop.evaluate_every and step % loop.evaluate_every == 0:
            with torch.no_grad():
                network.eval()(next(batches)[0])
        if step >= 0 and (step + 1) % interval == 0:
            _look(looks, (step + 1) // interval)


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, pictures: Tensor, classes: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(pictures), classes).backward()
    optimizer.step()


def _look(looks: array, index: int) -> None:
    """Write the measures to their place in ``looks``."""
    gc.collect()
    place, objects = index * len(MEASURES), gc.get_objects()
    looks[place] = len(objects)
    looks[place + 1] = sum(issubclass(type(each), Tensor) for each in objects)
    del objects
    looks[place + 2] = sys.getallocatedblocks()
    looks[place + 3] = _allocated()
    looks[place + 4] = _resident()


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


@cache
def _mallinfo2() -> Callable[[], _Mallinfo2]:
    try:
        function = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        raise OSError("the C library has no mallinfo2 (glibc has, since 2.33): run this on Linux with glibc") from None
    function.restype = _Mallinfo2
    return function


def _allocated() -> int:
    info = _mallinfo2()()
    return info.uordblks + info.hblkhd


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Change:
    """One measure in the first and in the last thousand steps, as means over the looks in each."""

    first: float
    last: float
    flat: bool  #: whether the last is above the first by no more than :data:`TOLERANCE`

    @property
    def growth(self) -> float:
        """The last less the first."""
        return self.last - self.first


def compare(looks: Sequence[Memory], part: int = 1000) -> dict[str, Change]:
    """The first ``part`` steps against the last, for every measure.

    Args:
        looks: of :func:`train`, over at least twice as many steps.
        part: steps at each end.

    Raises:
        ValueError: too few steps.
    """
    steps = looks[-1].step
    if steps < 2 * part:
        raise ValueError(f"to compare the first and the last {part} steps, at least {2 * part} are needed, not {steps}")
    first = [asdict(look) for look in looks if 0 < look.step <= part]
    last = [asdict(look) for look in looks if look.step > steps - part]
    changes = {}
    for measure, tolerance in TOLERANCE.items():
        before, after = (mean(look[measure] for look in looks) for looks in (first, last))
        changes[measure] = Change(before, after, flat=after - before <= tolerance)
    return changes
