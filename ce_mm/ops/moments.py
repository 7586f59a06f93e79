"""First step of a layer, one read of x: the moments of every sample and group.

All that Channel Equilibrium needs of the input are the means of its channels and of the products of channels of one
group. They are taken about a shift near the data: E[xx] - E[x]E[x] cancels when a channel's mean is large against its
spread, E[(x-k)(x-k)] - E[x-k]E[x-k] with k near the mean does not.
"""
import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums over a map of ``dtype`` are taken in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def data_shift(x: Tensor) -> Tensor:
    """A value near each channel's mean, from the middle row of every sample: no gradient flows through it.

    Args:
        x: (N, C, H, W), any floating type.

    Returns:
        (C,), float32 at least; zeros for an empty batch.
    """
    row = x.detach()[:, :, x.shape[2] // 2 : x.shape[2] // 2 + 1].to(compute_dtype(x.dtype))
    return row.mean(dim=(0, 2, 3)) if x.numel() else row.new_zeros(x.shape[1])


def moments(x: Tensor, group_size: int, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The means over H·W of z = x - shift and of its products inside each group.

    Args:
        x: (N, C, H, W), any floating type, either memory format.
        group_size: g, a divisor of C.
        shift: (C,), subtracted from x first; see :func:`data_shift`.

    Returns:
        mean: (N, C), m_n of the design; float32 at least.
        second: (N, C/g, g, g), E_n, uncentred; float32 at least.
    """
    n, c, h, w = x.shape
    z = x.to(shift.dtype) - shift.view(1, c, 1, 1)
    mean = z.mean(dim=(2, 3))
    if group_size == 1:
        return mean, z.square().mean(dim=(2, 3)).view(n, c, 1, 1)
    groups = z.reshape(n, c // group_size, group_size, h * w)
    return mean, groups @ groups.transpose(-1, -2) / (h * w)
