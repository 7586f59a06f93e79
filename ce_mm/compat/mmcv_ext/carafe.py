"""CARAFE (Wang et al., 2019): upsampling where each new pixel is its own weighted sum of a neighbourhood of old ones.

Shapes, of all, for a kernel of k × k pixels, G groups of channels and a scale of s:
    features: (N, C, H, W), floating point; float16 and bfloat16 are computed in float32.
    masks: (N, G · k · k, sH, sW), the weights of each new pixel.
    output: (N, C, sH, sW).
"""
import functools

import torch
import torch.nn.functional as F

from ce_mm.compat.mmcv_ext.gradients import overwrite_gradients
from ce_mm.compat.mmcv_ext.precision import at_least_float32


def carafe_forward(
    features: torch.Tensor,
    masks: torch.Tensor,
    rfeatures: torch.Tensor,
    routput: torch.Tensor,
    rmasks: torch.Tensor,
    output: torch.Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Overwrite ``output``, and ``rfeatures`` with what the backward pass gets in the place of ``features``.

    ``routput`` and ``rmasks`` are room for the compiled operator, unused here.
    """
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    grad_output: torch.Tensor,
    rfeatures: torch.Tensor,
    masks: torch.Tensor,
    rgrad_output: torch.Tensor,
    rgrad_input_hs: torch.Tensor,
    rgrad_input: torch.Tensor,
    rgrad_masks: torch.Tensor,
    grad_input: torch.Tensor,
    grad_masks: torch.Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Overwrite ``grad_input`` and ``grad_masks`` with the gradients; the other four are room, unused here."""
    carafe_naive_backward(
        grad_output, rfeatures, masks, grad_input, grad_masks, kernel_size, group_size, scale_factor)


def carafe_naive_forward(
    features: torch.Tensor,
    masks: torch.Tensor,
    output: torch.Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Overwrite ``output``."""
    tensors = map(at_least_float32, (features, masks))
    output.copy_(_reassemble(*tensors, kernel_size, group_size, scale_factor))


def carafe_naive_backward(
    grad_output: torch.Tensor,
    features: torch.Tensor,
    masks: torch.Tensor,
    grad_input: torch.Tensor,
    grad_masks: torch.Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Overwrite ``grad_input`` and ``grad_masks`` with the gradients."""
    reassemble = functools.partial(
        _reassemble, kernel_size=kernel_size, group_size=group_size, scale_factor=scale_factor)
    overwrite_gradients((grad_input, grad_masks), reassemble, (features, masks), grad_output)


def _reassemble(
    features: torch.Tensor, masks: torch.Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> torch.Tensor:
    height, width = features.shape[2:]
    neighbours = F.unfold(features, kernel_size, padding=kernel_size // 2)
    neighbours = neighbours.unflatten(2, (height, width)).unflatten(1, (group_size, -1, kernel_size**2))
    weights = masks.unflatten(3, (width, scale_factor)).unflatten(2, (height, scale_factor))
    weights = weights.unflatten(1, (group_size, kernel_size**2))
    pixels = torch.einsum("ngckhw,ngkhswt->ngchswt", neighbours, weights)
    return pixels.flatten(5, 6).flatten(3, 4).flatten(1, 2)
