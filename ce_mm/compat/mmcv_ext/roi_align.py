"""RoIAlign (He et al., 2017): what a feature map holds inside of each box, as the mean or maximum of bilinear samples.

torchvision's only averages. It also gives single samples, one a cell of a finer grid, and of these PyTorch's max pool
takes the largest.
"""
import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
import torchvision

from ce_mm.compat.mmcv_ext.gradients import gradients
from ce_mm.compat.mmcv_ext.precision import at_least_float32

MAXIMUM = 0  # mmcv's pool_mode; 1 is the average
OF_NO_SAMPLE = -10000.0  # mmcv's maximum where a region without extent has no sample


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
    """Overwrite ``output`` with the pooled regions of ``input``.

    Args:
        input: (N, C, H, W), floating point; float16 and bfloat16 are computed in float32.
        rois: (K, 5) as index of the picture, x1, y1, x2, y2, in units of 1 / spatial_scale pixels of ``input``.
        output: (K, C, aligned_height, aligned_width), the dtype of ``input``.
        argmax_y, argmax_x: overwritten by max pooling, the shape of ``output``: the row and column of the largest
            sample in the region's grid of samples (mmcv keeps its place in ``input``; only its backward pass asks).
        aligned_height, aligned_width: cells of a region.
        spatial_scale: pixels of ``input`` per unit of ``rois``.
        sampling_ratio: samples per side of a cell; 0 or less takes as many as the cell has pixels, rounded up.
        pool_mode: 0 (max) or 1 (average).
        aligned: whether pixel centres lie at half-integer coordinates, and a region may be narrower than one pixel.
    """
    size = (aligned_height, aligned_width)
    align = functools.partial(_roi_align, spatial_scale=spatial_scale, aligned=aligned)
    if pool_mode != MAXIMUM:
        output.copy_(align(input, rois, size, sampling_ratio=sampling_ratio))
        return

    output.fill_(OF_NO_SAMPLE)
    for some, samples in _grids(rois, size, spatial_scale, sampling_ratio, aligned):
        grid = align(input, rois[some], _times(size, samples), sampling_ratio=1)
        maxima, places = F.max_pool2d(grid, samples, return_indices=True)
        output[some] = maxima.to(output.dtype)
        argmax_y[some] = (places // grid.shape[3]).to(argmax_y.dtype)
        argmax_x[some] = (places % grid.shape[3]).to(argmax_x.dtype)


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

    The extra forward pass of autograd costs about a fifth of the backward pass.
    """
    size = (aligned_height, aligned_width)
    anywhere = torch.zeros_like(grad_input)  # the samples are linear in the input, which mmcv does not hand over
    align = functools.partial(_roi_align, spatial_scale=spatial_scale, aligned=aligned)
    if pool_mode != MAXIMUM:
        average = functools.partial(align, rois=rois, size=size, sampling_ratio=sampling_ratio)
        grad_input.copy_(*gradients(average, [anywhere], grad_output))
        return

    grad_input.zero_()
    for some, samples in _grids(rois, size, spatial_scale, sampling_ratio, aligned):
        height, width = _times(size, samples)
        places = (argmax_y[some] * width + argmax_x[some]).long()
        grad_grid = F.max_unpool2d(grad_output[some], places, samples, output_size=(height, width))
        grid = functools.partial(align, rois=rois[some], size=(height, width), sampling_ratio=1)
        grad_input.add_(*gradients(grid, [anywhere], grad_grid))


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


def _grids(
    rois: torch.Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[torch.Tensor, tuple[int, int]]]:
    """The regions (as indices) whose cells have equally many samples, and how many: rows and columns of a cell."""
    extent = (at_least_float32(rois[:, [4, 3]]) - rois[:, [2, 1]]) * spatial_scale
    if not aligned:
        extent = extent.clamp_min(1)
    samples = (extent / extent.new_tensor(size)).ceil().long()
    if sampling_ratio > 0:
        samples.fill_(sampling_ratio)
    for number in samples[(samples > 0).all(1)].unique(dim=0):
        yield (samples == number).all(1).nonzero()[:, 0], tuple(number.tolist())


def _times(size: tuple[int, int], samples: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a region's grid of samples."""
    return size[0] * samples[0], size[1] * samples[1]
