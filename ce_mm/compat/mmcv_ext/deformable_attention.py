"""Multi-scale deformable attention (Zhu et al., 2021), by the formula in plain PyTorch that mmcv keeps for CPUs.

For each query and head, it is a weighted sum of bilinear samples of the levels' maps. Of both directions:
    value: (N, positions of all levels, M heads, D), floating point; float16 is computed in float32.
    value_spatial_shapes: (L, 2), int64, height and width of each level; value_level_start_index (L,) follows from it.
    sampling_locations: (N, Q, M, L, P, 2), x and y, from 0 to 1 across a map.
    attention_weights: (N, Q, M, L, P).
    im2col_step: pictures that the compiled operator takes at once, without meaning here.
"""
import functools

from torch import Tensor

from ce_mm.compat.mmcv_ext.numerics import at_least_float32, overwrite_gradients


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """The attention (N, Q, M · D), of the dtype of ``value``."""
    return _attention(value_spatial_shapes, value, sampling_locations, attention_weights).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Overwrite the three gradients."""
    inputs = (value, sampling_locations, attention_weights)
    results = (grad_value, grad_sampling_loc, grad_attn_weight)
    overwrite_gradients(results, functools.partial(_attention, value_spatial_shapes), inputs, grad_output)


def _attention(shapes: Tensor, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    # Imported here because mmcv.ops imports mmcv._ext, whose operators are being defined.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    value, locations, weights = map(at_least_float32, (value, locations, weights))
    return multi_scale_deformable_attn_pytorch(value, shapes.tolist(), locations, weights)
