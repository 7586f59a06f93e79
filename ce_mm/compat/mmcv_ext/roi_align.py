"""RoIAlign (He et al., 2017): what a feature map holds inside of each box, as the mean or maximum of bilinear samples.

torchvision's only averages. It also gives single samples, one a cell of a finer grid, and of these PyTorch's max pool
takes the largest. Of both directions:
    input: (N, C, H, W), floating point; float16 and bfloat16 are computed in float32.
    rois: (K, 5) as index of the picture, x1, y1, x2, y2, in units of 1 / spatial_scale pixels of ``input``.
    output: (K, C, aligned_height, aligned_width), the dtype of ``input``.
    settings: of :func:`_roi_align`.
"""
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from ce_mm.compat.mmcv_ext.numerics import at_least_float32, overwrite_gradients

MAXIMUM = 0  # mmcv's pool_mode; 1 is the average
OF_NO_SAMPLE = -10000.0  # mmcv's maximum where a region without extent has no sample


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, **settings: float
) -> None:
    """Overwrite ``output`` with the pooled regions, and ``argmax_y`` with what the backward pass of a maximum needs.

    mmcv hands it on unread. In the place of where the maxima are it is the input, from which autograd finds them again.
    """
    output.copy_(_roi_align(input, rois, **settings))
    if settings["pool_mode"] == MAXIMUM:
        argmax_y.resize_as_(input).copy_(input)


def roi_align_backward(
    grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, **settings: float
) -> None:
    """Overwrite ``grad_input`` with the gradient."""
    if len(rois) == 0:
        grad_input.zero_()
        return
    # The average is linear in the input, which is not there then: its gradient is the same anywhere.
    input = argmax_y if settings["pool_mode"] == MAXIMUM else torch.zeros_like(grad_input)
    overwrite_gradients([grad_input], partial(_roi_align, rois=rois, **settings), [input], grad_output)


def _roi_align(
    input: Tensor,
    rois: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> Tensor:
    """The regions, each of ``aligned_height`` × ``aligned_width`` cells.

    Args:
        input, rois, aligned_height, aligned_width, spatial_scale: see above.
        sampling_ratio: samples per side of a cell; 0 or less takes as many as the cell has pixels, rounded up.
        pool_mode: 0 (max) or 1 (average).
        aligned: whether pixel centres lie at half-integer coordinates, and a region may be narrower than one pixel.
    """
    input, size = at_least_float32(input), (aligned_height, aligned_width)
    rois = rois.to(input.dtype)
    if pool_mode != MAXIMUM:
        return torchvision.ops.roi_align(input, rois, size, spatial_scale, sampling_ratio, aligned)

    output = input.new_empty(len(rois), input.shape[1], *size)
    samples = _samples(rois * spatial_scale, size, sampling_ratio, aligned)
    for number in samples.clamp_min(1).unique(dim=0):
        some, (rows, columns) = (samples.clamp_min(1) == number).all(1), number.tolist()
        finer = (aligned_height * rows, aligned_width * columns)
        grid = torchvision.ops.roi_align(input, rois[some], finer, spatial_scale, 1, aligned)
        output[some] = F.max_pool2d(grid, (rows, columns))
    return output.where((samples > 0).all(1)[:, None, None, None], OF_NO_SAMPLE)


def _samples(rois: Tensor, size: tuple[int, int], sampling_ratio: int, aligned: bool) -> Tensor:
    """How many rows and columns of samples a cell of each region has: (K, 2)."""
    extent = rois[:, [4, 3]] - rois[:, [2, 1]]
    if not aligned:
        extent = extent.clamp_min(1)
    samples = (extent / extent.new_tensor(size)).ceil().long()
    return samples.fill_(sampling_ratio) if sampling_ratio > 0 else samples
