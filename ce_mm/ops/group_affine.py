"""Last step of a layer, one read of x and one write of y: an affine map of every sample and group.

The residual add and the rectifier that follow a norm in a network are part of the same pass.
"""
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ce_mm.ops.backends import choose
from ce_mm.ops.custom_op import check_map, is_watched, operator
from ce_mm.ops.joint import input_gradient, output_sums
from ce_mm.ops.moments import dense
from ce_mm.ops.types import Link

#: Rectifiers of the last pass, by the ceiling that they cut off at.
RELU, RELU6 = math.inf, 6.0


def group_affine(
    x: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    diagonal: Tensor | None,
    bias: Tensor,
    residual: Tensor | None = None,
    rectifier: float | None = None,
    link: Link | None = None,
    overwrite: bool = False,
) -> Tensor:
    """``y = (W + Diag(e_n)) (x - shift) + t_n`` inside each group of channels, then the residual and the rectifier.

    Like the moments, the product is taken about the shift, since W x and t cancel where a mean is large.

    Args:
        x: (N, C, H, W), any floating type, either memory format (another is copied first).
        shift: (C,) or (N, C), float32 at least, the same that the moments behind the coefficients were taken about.
        weight: W, (1 or N, C/g, g, g), or None for a map of each channel by itself.
        diagonal: e_n, (N, C); may be None where there is a weight.
        bias: t_n, (N or 1, C).
        residual: (N, C, H, W), added to the result.
        rectifier: RELU, or the ceiling of one that cuts off, as RELU6; None for none.
        link: the moments', so that both operators share one backward. Without it, the gradient of x is that of this
            map alone.
        overwrite: permission to write the result over x, for callers who know that nobody needs x again. It is made
            use of on a CPU where no gradient is wanted: there fresh memory can cost more than the arithmetic.

    Returns:
        (N, C, H, W) in x's type and memory format; a tensor that callers may change in place, unless there is a
        rectifier: then the backward reads from it where that let values through, and no mask is kept beside it.

    Raises:
        ValueError: x or the residual has another shape.
        TypeError: x is of no floating type.
    """
    check_map("group_affine", x, residual=residual, rectifier=rectifier)
    inputs = dense(x), shift, weight, diagonal, bias, residual, rectifier
    if overwrite and may_overwrite(_passes(x, weight), inputs):
        return _passes(x, weight).group_affine(*inputs, overwrite=True)
    return _group_affine(*inputs, *(link or (None,) * 4))


def _passes(x: Tensor, weight: Tensor | None) -> ModuleType:
    return choose(x.device, x.dtype, 1 if weight is None else weight.shape[-1], not x.numel())


def may_overwrite(passes: ModuleType, inputs: tuple) -> bool:
    """Whether a backend can write over the first of them, and neither autograd nor a mode may have kept that."""
    can = inputs[0].device.type in getattr(passes, "OVERWRITES", ())
    may_be_kept = torch.is_grad_enabled() or is_watched(inputs) or torch._C._len_torch_function_stack() > 0
    return can and not may_be_kept


@operator("ce_mm::group_affine")
def _group_affine(
    x: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    diagonal: Tensor | None,
    bias: Tensor,
    residual: Tensor | None,
    rectifier: float | None,
    gradient_link: Tensor | None,
    output_link: Tensor | None,
    weight_link: Tensor | None,
    diagonal_link: Tensor | None,
) -> Tensor:
    return _passes(x, weight).group_affine(x, shift, weight, diagonal, bias, residual, rectifier)


@_group_affine.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, shift, weight, diagonal, bias, _, ctx.rectifier, gradient_link, *_ = inputs
    ctx.save_for_backward(x, shift, weight, diagonal, None if ctx.rectifier is None else output)
    ctx.linked = gradient_link is not None
    ctx.bias_shape = bias.shape
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None) -> tuple:
    if dy is None:
        return (None,) * 11
    x, shift, weight, diagonal, rectified = ctx.saved_tensors
    x = dense(x)  # hooks may have saved it otherwise
    group_size, products = (1, False) if weight is None else (weight.shape[-1], ctx.needs_input_grad[2])
    per_sample = products and weight.shape[0] != 1  # 0 of an empty batch
    to_residual = ctx.needs_input_grad[5]
    gradient, rectified, (total, inner), product = first_pass(
        dy, x, shift, rectified, ctx.rectifier, to_residual, group_size, products, per_sample
    )
    dweight = product if products else None
    ddiagonal = None if diagonal is None else inner
    dx = None
    to_link: tuple[Tensor | None, ...] = (None,) * 4
    if ctx.linked:
        to_link = (gradient, rectified, weight, diagonal)
    elif ctx.needs_input_grad[0]:
        dx = input_gradient(gradient, rectified, x, shift, weight, diagonal, None, None, None)
    residual = gradient if to_residual else None
    return dx, None, dweight, ddiagonal, total.sum_to_size(ctx.bias_shape), residual, None, *to_link


def first_pass(
    dy: Tensor,
    x: Tensor,
    shift: Tensor,
    rectified: Tensor | None,
    rectifier: float | None,
    to_residual: bool,
    group_size: int,
    products: bool,
    per_sample: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """:func:`~ce_mm.ops.joint.output_sums`, keeping the gradient before the rectifier where that is needed again.

    Returns:
        The gradient for a residual and for the second pass, what of y this has to mind, the sums and their products.
    """
    # A residual has the gradient before the rectifier for its own, and of a ceiling the second pass knows nothing; else
    # nobody needs that gradient, and it is not written.
    keep = rectified is not None and (to_residual or rectifier != RELU)
    gradient, *sums = output_sums(dy, x, shift, rectified, rectifier, keep, group_size, products, per_sample)
    return (gradient, None, *sums) if keep else (dy, rectified, *sums)


_group_affine.register_autograd(_backward, setup_context=_setup_context)
