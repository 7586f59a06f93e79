"""Moving averages that a bad batch cannot poison, without asking the device anything."""
from collections.abc import Sequence

import torch
from torch import Tensor

from ce_mm.ops.backend import coefficient_kernels

#: A buffer (changed in place), its new value (of its shape) and the momentum m in ``(1 - m) buffer + m value``.
Average = tuple[Tensor, Tensor, float | Tensor]


@torch.no_grad()
def update_averages(averages: Sequence[Average], present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Move every buffer towards its new value, or none of them if any value is not finite (paper eq. 32).

    Args:
        averages: what to move, and where; the values of one type.
        present: a bool (), whether there was a sample at all: otherwise no buffer moves. None: there was.

    Returns:
        Two bools of shape () on the device: whether all values are finite, and whether the buffers were moved.
    """
    kernels = coefficient_kernels(*(value for _, value, _ in averages), *(buffer for buffer, _, _ in averages))
    if present is None and kernels is not None and kernels.can_move(averages):
        finite = kernels.move_averages(averages)
        return finite, finite
    total = torch.cat([value.flatten() for _, value, _ in averages]).sum()
    finite = (total - total) == 0  # neither NaN nor infinite, at a quarter of isfinite's calls
    moved = finite if present is None else finite & present
    for buffer, value, momentum in averages:
        target = torch.where(moved, value, buffer)
        buffer.lerp_(target if target.dtype == buffer.dtype else target.to(buffer.dtype), momentum)
    return finite, moved
