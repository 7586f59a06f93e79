"""Multi-scale deformable attention (Zhu et al., 2021), by the formula in plain PyTorch that mmcv keeps for CPUs."""
from collections.abc import Callable

import torch

from ce_mm.compat.mmcv_ext.gradients import overwrite_gradients
from ce_mm.compat.mmcv_ext.precision import at_least_float32


def ms_deform_attn_forward(
    value: torch.Tensor,
    value_spatial_shapes: torch.Tensor,
    value_level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    im2col_step: int,
) -> torch.Tensor:
    """For each query and head, a weighted sum of bilinear samples of the levels' maps.

    Args:
        value: (N, positions of all levels, M heads, D), floating point; float16 is computed in float32.
        value_spatial_shapes: (L, 2), int64, height and width of each level.
        value_level_start_index: (L,), follows from the shapes.
        sampling_locations: (N, Q, M, L, P, 2), x and y, from 0 to 1 across a map.
        attention_weights: (N, Q, M, L, P).
        im2col_step: pictures that the compiled operator takes at once, without meaning here.

    Returns:
        (N, Q, M · D), the dtype of ``value``.
    """
    tensors = map(at_least_float32, (value, sampling_locations, attention_weights))
    return _attention(value_spatial_shapes)(*tensors).to(value.dtype)


def ms_deform_attn_backward(
    value: torch.Tensor,
    value_spatial_shapes: torch.Tensor,
    value_level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    grad_output: torch.Tensor,
    grad_value: torch.Tensor,
    grad_sampling_loc: torch.Tensor,
    grad_attn_weight: torch.Tensor,
    im2col_step: int,
) -> None:
    """Overwrite the three gradients; see :func:`ms_deform_attn_forward`."""
    inputs = (value, sampling_locations, attention_weights)
    results = (grad_value, grad_sampling_loc, grad_attn_weight)
    overwrite_gradients(results, _attention(value_spatial_shapes), inputs, grad_output)


def _attention(value_spatial_shapes: torch.Tensor) -> Callable[..., torch.Tensor]:
    """The attention as a function of value, sampling locations and attention weights."""
    # Imported here because mmcv.ops imports mmcv._ext, whose operators are being defined.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    shapes = value_spatial_shapes.tolist()
    return lambda value, locations, weights: multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
