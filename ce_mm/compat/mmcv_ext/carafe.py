"""CARAFE (Wang et al., 2019): upsampling where each new pixel is its own weighted sum of a neighbourhood of old ones.

Of all, for a kernel of k × k pixels, G groups of channels and a scale of s:
    features: (N, C, H, W), floating point; float16 and bfloat16 are computed in float32.
    masks: (N, G · k · k, sH, sW), the weights of each new pixel.
    output: (N, C, sH, sW).
    settings: kernel_size k, group_size G and scale_factor s.
The other tensors are room for the compiled operators, unused here.
"""
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from ce_mm.compat.mmcv_ext.numerics import at_least_float32, overwrite_gradients


def carafe_forward(
    features: Tensor, masks: Tensor, rfeatures: Tensor, routput: Tensor, rmasks: Tensor, output: Tensor, **settings: int
) -> None:
    """Overwrite ``output``, and ``rfeatures`` with what the backward pass gets in the place of ``features``."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, **settings)


def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    **settings: int,
) -> None:
    """Overwrite ``grad_input`` and ``grad_masks`` with the gradients."""
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, **settings)


def carafe_naive_forward(features: Tensor, masks: Tensor, output: Tensor, **settings: int) -> None:
    """Overwrite ``output``."""
    output.copy_(_reassemble(features, masks, **settings))


def carafe_naive_backward(
    grad_output: Tensor, features: Tensor, masks: Tensor, grad_input: Tensor, grad_masks: Tensor, **settings: int
) -> None:
    """Overwrite ``grad_input`` and ``grad_masks`` with the gradients."""
    reassemble = functools.partial(_reassemble, **settings)
    overwrite_gradients((grad_input, grad_masks), reassemble, (features, masks), grad_output)


def _reassemble(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    height, width = features.shape[2:]
    neighbours = F.unfold(at_least_float32(features), kernel_size, padding=kernel_size // 2)
    neighbours = neighbours.unflatten(2, (height, width)).unflatten(1, (group_size, -1, kernel_size**2))
    weights = at_least_float32(masks).unflatten(3, (width, scale_factor)).unflatten(2, (height, scale_factor))
    weights = weights.unflatten(1, (group_size, kernel_size**2))
    pixels = torch.einsum("ngckhw,ngkhswt->ngchswt", neighbours, weights)
    return pixels.flatten(5, 6).flatten(3, 4).flatten(1, 2)
