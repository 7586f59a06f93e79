"""Last step of a layer, one read of x and one write of y: an affine map of every sample and group."""
import torch
from torch import Tensor


def group_affine(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor) -> Tensor:
    """``y = W (x - shift) + t`` inside each group of channels.

    Like the moments, the product is taken about the shift, since W x and t cancel where a mean is large.

    Args:
        x: (N, C, H, W), any floating type, either memory format.
        weight: W, (N or 1, C/g, g, g), in the type of shift.
        bias: t, (N or 1, C), in the type of shift.
        shift: (C,), the same that the moments behind W and t were taken about.

    Returns:
        (N, C, H, W) in x's type and memory format; a fresh tensor that callers may change in place.
    """
    n, c, h, w = x.shape
    groups, g = weight.shape[1], weight.shape[2]
    z = x.to(shift.dtype) - shift.view(1, c, 1, 1)
    if g == 1:
        y = z * weight.view(-1, c, 1, 1)
    else:
        y = (weight @ z.reshape(n, groups, g, h * w)).view(n, c, h, w)
    y = (y + bias.view(-1, c, 1, 1)).to(x.dtype)
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        y = y.contiguous(memory_format=torch.channels_last)
    return y
