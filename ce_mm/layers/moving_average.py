"""Moving averages that a bad batch cannot poison, without asking the device anything."""
from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def update_averages(averages: Sequence[tuple[Tensor, Tensor, float | Tensor]]) -> Tensor:
    """Move every buffer towards its new value, or none of them if any value is not finite (paper eq. 32).

    Args:
        averages: triples of the buffer (changed in place), its new value (of its shape) and the momentum m in
            ``buffer = (1 - m) buffer + m value``.

    Returns:
        A bool of shape () on the device: whether the buffers were moved.
    """
    total = torch.stack([value.sum() for _, value, _ in averages]).sum()
    finite = (total - total) == 0  # neither NaN nor infinite, at a quarter of isfinite's calls
    for buffer, value, momentum in averages:
        target = torch.where(finite, value, buffer)
        buffer.lerp_(target if target.dtype == buffer.dtype else target.to(buffer.dtype), momentum)
    return finite
