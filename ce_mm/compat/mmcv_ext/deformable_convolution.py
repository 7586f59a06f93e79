"""Deformable convolution, without (Dai et al., 2017) and with modulation (Zhu et al., 2019), over torchvision's.

Of all:
    input: (N, C, H, W), floating point; float16 and bfloat16 are computed in float32.
    weight: (O, C / groups, kH, kW).
    offset: (N, 2 · D · kH · kW, H', W'), y before x, in pixels, for D deformable groups.
    mask: (N, D · kH · kW, H', W'), the modulation.
    bias: (O,), which counts if ``with_bias``.
    output: (N, O, H', W').
    settings: stride, padding and dilation, by the names below; the numbers of groups and the size of the kernel, which
        are among them, follow from the tensors.
``columns`` and ``ones`` are room for the compiled operators, unused here.
"""
from functools import partial
from operator import itemgetter

import torch
import torchvision
from torch import Tensor

from ce_mm.compat.mmcv_ext.numerics import at_least_float32, gradients, overwrite_gradients

Pair = tuple[int, int]

_plain = itemgetter("dH", "dW", "padH", "padW", "dilationH", "dilationW")
_modulated = itemgetter("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **settings: int
) -> None:
    """Overwrite ``output`` with the convolution."""
    output.copy_(_convolution(output.shape[2:], _plain(settings), input, offset, weight))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **settings: int,
) -> None:
    """Overwrite ``grad_input`` and ``grad_offset`` with the gradients."""
    convolution = partial(_convolution, grad_output.shape[2:], _plain(settings), weight=weight)
    overwrite_gradients((grad_input, grad_offset), convolution, (input, offset), grad_output)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **settings: int,
) -> None:
    """Add ``scale`` times the gradient to ``grad_weight``."""
    anywhere = torch.zeros_like(grad_weight)  # the convolution is linear in its weight, which mmcv does not hand over
    convolution = partial(_convolution, grad_output.shape[2:], _plain(settings), input, offset)
    grad_weight.add_(*gradients(convolution, [anywhere], grad_output), alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **settings: int,
) -> None:
    """Overwrite ``output`` with the convolution."""
    tensors = (input, offset, weight, mask, *[bias] * with_bias)
    output.copy_(_convolution(output.shape[2:], _modulated(settings), *tensors))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **settings: int,
) -> None:
    """Overwrite the gradients, ``grad_bias`` only with bias."""
    tensors = (input, offset, weight, mask, *[bias] * with_bias)
    results = (grad_input, grad_offset, grad_weight, grad_mask, *[grad_bias] * with_bias)
    convolution = partial(_convolution, grad_output.shape[2:], _modulated(settings))
    overwrite_gradients(results, convolution, tensors, grad_output)


def _convolution(
    size: torch.Size,
    geometry: tuple[int, ...],
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The convolution to a map of a size, for strides, paddings and dilations of rows and columns."""
    stride, padding, dilation = geometry[:2], geometry[2:4], geometry[4:]
    input, weight = map(at_least_float32, (input, weight))
    offset = _as_read(offset, size)
    inside = _inside(offset, weight.shape[2:], stride, padding, dilation).to(input.dtype)
    mask = inside if mask is None else _as_read(mask, size) * inside
    bias = None if bias is None else at_least_float32(bias)
    return torchvision.ops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)


def _as_read(tensor: Tensor, size: torch.Size) -> Tensor:
    """The tensor as mmcv's kernel reads it: as if it had the output's height and width, from its first element on.

    mmdet's DyHead hands over the offsets and masks of a larger map, and its published weights were trained so.
    """
    channels = tensor.shape[1]
    return at_least_float32(tensor).flatten(1)[:, : channels * size.numel()].unflatten(1, (channels, *size))


def _inside(offset: Tensor, kernel: torch.Size, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Which samples lie below the row -1 and right of the column -1: the shape of a mask, bool.

    The others are 0. On those lines mmcv takes 0 for the derivative as well, torchvision the one of the side where the
    map is; offsets that start at 0 put the samples of the padding just there.
    """
    dy, dx = offset.unflatten(1, (-1, *kernel, 2)).unbind(4)  # (N, D, kH, kW, H', W')
    rows, columns = (
        torch.arange(kernel[i], device=offset.device)[:, None] * dilation[i]
        + torch.arange(offset.shape[2 + i], device=offset.device) * stride[i] - padding[i]
        for i in (0, 1)
    )
    return ((rows[:, None, :, None] + dy > -1) & (columns[:, None] + dx > -1)).flatten(1, 3)
