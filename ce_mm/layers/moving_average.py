"""Moving averages that a bad batch cannot poison, without asking the device anything."""
from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def update_averages(
    averages: Sequence[tuple[Tensor, Tensor, float | Tensor]], present: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Move every buffer towards its new value, or none of them if any value is not finite (paper eq. 32).

    Args:
        averages: triples of the buffer (changed in place), its new value (of its shape) and the momentum m in
            ``buffer = (1 - m) buffer + m value``.
        present: a bool (), whether there was a sample at all: otherwise no buffer moves. None: there was.

    Returns:
        Two bools of shape () on the device: whether all values are finite, and whether the buffers were moved.
    """
    total = torch.stack([value.sum() for _, value, _ in averages]).sum()
    finite = (total - total) == 0  # neither NaN nor infinite, at a quarter of isfinite's calls
    moved = finite if present is None else finite & present
    for buffer, value, momentum in averages:
        target = torch.where(moved, value, buffer)
        buffer.lerp_(target if target.dtype == buffer.dtype else target.to(buffer.dtype), momentum)
    return finite, moved
