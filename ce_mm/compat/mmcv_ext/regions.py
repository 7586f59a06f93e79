"""Operators on regions of interest (RoI): what a feature map holds inside of each box."""
import functools

import torch
import torchvision

from ce_mm.compat.mmcv_ext.gradients import gradients
from ce_mm.compat.mmcv_ext.precision import at_least_float32


def roi_align_forward(
    input: torch.Tensor,
    rois: torch.Tensor,
    output: torch.Tensor,
    argmax_y: torch.Tensor,
    argmax_x: torch.Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Overwrite ``output`` with the average-pooled regions of ``input``.

    Args:
        input: (N, C, H, W), floating point; float16 and bfloat16 are computed in float32.
        rois: (K, 5) as index of the picture, x1, y1, x2, y2, in units of 1 / spatial_scale pixels of ``input``.
        output: (K, C, aligned_height, aligned_width), the dtype of ``input``.
        argmax_y, argmax_x: of max pooling, unused here.
        aligned_height, aligned_width: cells of a region.
        spatial_scale: pixels of ``input`` per unit of ``rois``.
        sampling_ratio: samples per side of a cell; 0 or less takes as many as the cell has pixels, rounded up.
        pool_mode: 1 (average).
        aligned: whether pixel centres lie at half-integer coordinates, and a region may be narrower than one pixel.

    Raises:
        NotImplementedError: for pool_mode 0 (max), which torchvision lacks.
    """
    _check_average(pool_mode)
    size = (aligned_height, aligned_width)
    output.copy_(_roi_align(input, rois, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: torch.Tensor,
    rois: torch.Tensor,
    argmax_y: torch.Tensor,
    argmax_x: torch.Tensor,
    grad_input: torch.Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Overwrite ``grad_input`` (N, C, H, W) with the gradient; see :func:`roi_align_forward` for the other arguments.

    torchvision's public interface to its backward pass is autograd, which costs one more forward pass (about a fifth of
    the backward pass). The operator is linear in its input, so any input of the right shape does.
    """
    _check_average(pool_mode)
    size = (aligned_height, aligned_width)
    align = functools.partial(
        _roi_align, rois=rois, size=size, spatial_scale=spatial_scale, sampling_ratio=sampling_ratio, aligned=aligned
    )
    (gradient,) = gradients(align, [torch.zeros_like(grad_input)], grad_output)
    grad_input.copy_(gradient)


def _roi_align(
    input: torch.Tensor,
    rois: torch.Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    input = at_least_float32(input)
    return torchvision.ops.roi_align(input, rois.to(input.dtype), size, spatial_scale, sampling_ratio, aligned)


def _check_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            "RoIAlign with pool_mode='max': this mmcv has no compiled operators, and torchvision, which stands in, "
            "only averages; take pool_mode='avg'."
        )
