"""Deformable convolution, without (Dai et al., 2017) and with modulation (Zhu et al., 2019), over torchvision's.

Shapes, of both:
    input: (N, C, H, W), floating point; float16 and bfloat16 are computed in float32.
    weight: (O, C / groups, kH, kW).
    offset: (N, 2 · D · kH · kW, H', W'), y before x, in pixels, for D deformable groups.
    mask: (N, D · kH · kW, H', W'), the modulation.
    bias: (O,), or empty for none.
    output: (N, O, H', W').
"""
import functools
from collections.abc import Callable

import torch
import torchvision

from ce_mm.compat.mmcv_ext.gradients import gradients, overwrite_gradients
from ce_mm.compat.mmcv_ext.precision import at_least_float32


def deform_conv_forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    offset: torch.Tensor,
    output: torch.Tensor,
    columns: torch.Tensor,
    ones: torch.Tensor,
    **geometry: int,
) -> None:
    """Overwrite ``output`` with the convolution.

    Args:
        input, weight, offset, output: see above.
        columns, ones: room for the compiled operator, unused here.
        geometry: stride dH, dW, padding padH, padW, dilationH and dilationW; the numbers of groups and the size of the
            kernel follow from the tensors.
    """
    output.copy_(_plain(geometry)(*map(at_least_float32, (input, offset, weight))))


def deform_conv_backward_input(
    input: torch.Tensor,
    offset: torch.Tensor,
    grad_output: torch.Tensor,
    grad_input: torch.Tensor,
    grad_offset: torch.Tensor,
    weight: torch.Tensor,
    columns: torch.Tensor,
    **geometry: int,
) -> None:
    """Overwrite ``grad_input`` and ``grad_offset`` with the gradients; see :func:`deform_conv_forward`."""
    by_input, by_offset, _ = gradients(_plain(geometry), (input, offset, weight), grad_output)
    grad_input.copy_(by_input)
    grad_offset.copy_(by_offset)


def deform_conv_backward_parameters(
    input: torch.Tensor,
    offset: torch.Tensor,
    grad_output: torch.Tensor,
    grad_weight: torch.Tensor,
    columns: torch.Tensor,
    ones: torch.Tensor,
    scale: float,
    **geometry: int,
) -> None:
    """Add ``scale`` times the gradient to ``grad_weight``; see :func:`deform_conv_forward`."""
    anywhere = torch.zeros_like(grad_weight)  # the convolution is linear in its weight, which mmcv does not hand over
    *_, by_weight = gradients(_plain(geometry), (input, offset, anywhere), grad_output)
    grad_weight.add_(by_weight, alpha=scale)


def modulated_deform_conv_forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    ones: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    output: torch.Tensor,
    columns: torch.Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Overwrite ``output`` with the convolution.

    Args:
        input, weight, bias, offset, mask, output: see above.
        ones, columns: room for the compiled operator, unused here.
        with_bias: whether ``bias`` counts.
        geometry: stride_h, stride_w, pad_h, pad_w, dilation_h and dilation_w; the numbers of groups and the size of the
            kernel follow from the tensors.
    """
    tensors = (input, offset, weight, mask, *[bias] * with_bias)
    output.copy_(_modulated(geometry, output.shape[2:])(*map(at_least_float32, tensors)))


def modulated_deform_conv_backward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    ones: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    columns: torch.Tensor,
    grad_input: torch.Tensor,
    grad_weight: torch.Tensor,
    grad_bias: torch.Tensor,
    grad_offset: torch.Tensor,
    grad_mask: torch.Tensor,
    grad_output: torch.Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Overwrite the gradients, ``grad_bias`` only with bias; see :func:`modulated_deform_conv_forward`."""
    tensors = (input, offset, weight, mask, *[bias] * with_bias)
    results = (grad_input, grad_offset, grad_weight, grad_mask, *[grad_bias] * with_bias)
    convolution = _modulated(geometry, grad_output.shape[2:])
    overwrite_gradients(results, convolution, tensors, grad_output)


def _plain(geometry: dict[str, int]) -> Callable[..., torch.Tensor]:
    """The convolution as a function of input, offset and weight."""
    return functools.partial(
        _convolution,
        stride=(geometry["dH"], geometry["dW"]),
        padding=(geometry["padH"], geometry["padW"]),
        dilation=(geometry["dilationH"], geometry["dilationW"]),
    )


def _modulated(geometry: dict[str, int], size: torch.Size) -> Callable[..., torch.Tensor]:
    """The convolution to a map of a size, as a function of input, offset, weight, mask and, if there is one, bias."""
    convolution = functools.partial(
        _convolution,
        stride=(geometry["stride_h"], geometry["stride_w"]),
        padding=(geometry["pad_h"], geometry["pad_w"]),
        dilation=(geometry["dilation_h"], geometry["dilation_w"]),
    )
    return lambda input, offset, weight, mask, *bias: convolution(
        input, _as_read(offset, size), weight, _as_read(mask, size), *bias)


def _convolution(
    input: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> torch.Tensor:
    inside = _inside(offset, weight.shape[2:], stride, padding, dilation)
    mask = inside.to(input.dtype) if mask is None else mask * inside
    return torchvision.ops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)


def _as_read(tensor: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """The tensor as mmcv's kernel reads it: as if it had the output's height and width, from its first element on.

    mmdet's DyHead hands over the offsets and masks of a larger map, and its published weights were trained so.
    """
    channels = tensor.shape[1]
    return tensor.flatten(1)[:, : channels * size.numel()].unflatten(1, (channels, *size))


def _inside(
    offset: torch.Tensor,
    kernel: torch.Size,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> torch.Tensor:
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
