"""What kernels are told of tensors: addresses, types, and how a map lies in memory."""
import math
import threading
from array import array
from collections.abc import Iterable

import torch
from torch import Tensor

from ce_mm.ops.backends.numba_tiles import BFLOAT, HALFS, SINGLE
from ce_mm.ops.backends.numba_vectors import LANES

#: The types of maps, and what kernels know them by.
KINDS = {torch.float32: SINGLE, torch.bfloat16: BFLOAT, torch.float16: HALFS}
#: Zeros of float32 that are subtracted from what has no shift, as many as the widest group has channels.
_NO_SHIFT = array("f", bytes(4 * 64))
NO_SHIFT, _ = _NO_SHIFT.buffer_info()
#: Bytes that scratch memory begins at a multiple of: a vector, and a line of the cache.
ALIGNMENT = 64
_memory = threading.local()


def view_of(x: Tensor, shift: Tensor, group_size: int) -> tuple[int, ...]:
    """The first arguments of both kernels: n, c, g, p, row, position, x, x_kind, shift, shift_step, no_shift."""
    n, c, h, w = x.shape
    check_sizes(n, [(shift, c)])
    row, position = (h * w, 1) if x.is_contiguous() else (1, c)
    shift_step = 4 * c if shift.dim() == 2 else 0
    return (
        n, c, group_size, h * w, row, position, x.data_ptr(), KINDS[x.dtype],
        shift.data_ptr(), shift_step, NO_SHIFT,
    )  # fmt: skip


def at_a_time(x: Tensor) -> int:
    """How many channels a unit of work takes where no matrix ties them: one, but in a channels-last map, where they lie
    side by side, as many as a vector has lanes, or it would be read value by value."""
    return 1 if x.is_contiguous() else math.gcd(x.shape[1], LANES)


def check_sizes(n: int, coefficients: Iterable[tuple[Tensor | None, int]]) -> None:
    """Refuse what kernels would read behind its end.

    Args:
        n: of the map.
        coefficients: each, and how many numbers of it belong to a sample; one set may serve for all samples.

    Raises:
        RuntimeError: a tensor has another size or type, or is on another device.
    """
    for values, size in coefficients:
        if values is None:
            continue
        sets = 1 if values.dim() == 1 or values.shape[0] == 1 else n
        fits = values.numel() == sets * size and values.dtype == torch.float32
        if not fits or values.device.type != "cpu":
            raise RuntimeError(
                f"coefficients of a map on a CPU have {size} numbers of float32 for each of its {n} samples or for "
                f"all, got {tuple(values.shape)} of {values.dtype} on {values.device}"
            )


def addresses(*values: Tensor | None) -> list[int]:
    """Where they lie, 0 for what is not there."""
    return [0 if value is None else value.data_ptr() for value in values]


def kinds(*maps: Tensor | None) -> list[int]:
    """The codes of their types."""
    return [0 if values is None else KINDS[values.dtype] for values in maps]


def steps(*values: Tensor | None) -> list[int]:
    """In bytes, from one sample's coefficients of float32 to the next's: 0 where they share them."""
    return [0 if value is None or value.shape[0] == 1 else 4 * value.stride(0) for value in values]


def scratch_of(size: int) -> int:
    """Memory for the threads of a kernel that this thread starts, used again by the next: fresh memory has to be had
    page by page from the system, which takes longer than a small map.
    """
    if size > getattr(_memory, "size", 0):
        _memory.held = array("b", bytes(size + ALIGNMENT))  # no tensor: a mode could make that one without memory
        _memory.size, _memory.place = size, -(-_memory.held.buffer_info()[0] // ALIGNMENT) * ALIGNMENT
    return _memory.place
