"""One backward for two operators: how the gradient of a layer reads its maps twice and no more.

The loss depends on x along two ways: through the moments, and through the map y = W (x - shift) + t itself. Autograd
would give each operator its own pass for dx, and one more to add them. Instead :func:`~ce_mm.ops.moments` also returns
a *link*, four tensors of no content that :func:`~ce_mm.ops.group_affine` takes as inputs. Backward, the affine reduces
dy and x to the gradients of its coefficients (:func:`output_sums`, the first pass) and hands dy, y and W to the node of
the moments as the "gradients" of the link. Autograd runs that node last, when the coefficients' gradients have come
down to those of the moments, and it writes dx at once (:func:`input_gradient`, the second pass):

    dx = W_nᵀ dy + (dm_n + 2 dq_n ⊙ z + (dE + dEᵀ) z) / (H·W)

This keeps every step a plain function of tensors, so that autograd, torch.compile and export see nothing unusual.
"""
import torch
from torch import Tensor

from ce_mm.ops.backend import kernels
from ce_mm.ops.operator import operator
from ce_mm.ops.plain import product_shape

Link = tuple[Tensor, Tensor, Tensor, Tensor]


def make_link(x: Tensor, shift: Tensor, group_size: int, per_sample: bool) -> Link:
    """Tensors of the shapes of dy, y, weight and diagonal, with a single element of memory each that nobody reads."""
    return (
        _unread(x).expand(x.shape),
        _unread(x).expand(x.shape),
        _unread(shift).expand(product_shape(x, group_size, per_sample)),
        _unread(shift).expand(x.shape[:2]),
    )


def _unread(like: Tensor) -> Tensor:
    """One element; a zero, whom tools may compare, except on a GPU, where that would cost a launch."""
    return like.new_empty(()) if like.is_cuda else like.new_zeros(())


@operator("ce_mm::output_sums")
def output_sums(
    dy: Tensor,
    x: Tensor,
    shift: Tensor,
    rectified: Tensor | None,
    ceiling: float | None,
    keep: bool,
    group_size: int,
    products: bool,
    per_sample: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The first pass: one read of dy and x.

    Args:
        dy: (N, C, H, W), the gradient of y.
        x, shift, group_size: as in :func:`~ce_mm.ops.group_affine`.
        rectified: y itself, positive where the ReLU let it through, or None where there was no ReLU.
        ceiling: what y was cut off at, or None: no gradient flows where y has it.
        keep: whether to write the gradient before a ReLU too, for others to use; without, the first result is empty.
        products: whether to sum dy zᵀ; without, the last result is empty.
        per_sample: whether to keep the products of each sample apart.

    Returns:
        gradient: (N, C, H, W), dy where y is positive, if kept.
        sums: (2, N, C), the gradient's sums over the positions, dt, and those of gradient ⊙ z.
        product: (N or 1, C/g, g, g), the sums of gradient zᵀ inside each group, dW.
    """
    return kernels(x).output_sums(dy, x, shift, rectified, ceiling, keep, group_size, products, per_sample)


@output_sums.register_fake
def _(dy, x, shift, rectified, ceiling, keep, group_size, products, per_sample):
    product = product_shape(x, group_size, per_sample) if products else (0,)
    gradient = torch.empty_like(x, dtype=dy.dtype) if keep else dy.new_empty(0)
    return gradient, shift.new_empty(2, *x.shape[:2]), shift.new_empty(product)


@operator("ce_mm::input_gradient")
def input_gradient(
    gradient: Tensor | None,
    rectified: Tensor | None,
    x: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    diagonal: Tensor | None,
    dmean: Tensor | None,
    dsquare: Tensor | None,
    dsecond: Tensor | None,
) -> Tensor:
    """The second pass: one read of the gradient and x, one write of dx.

    Args:
        gradient: (N, C, H, W), that of y, or None where y did not depend on x.
        rectified: y itself, where the gradient has yet to pass its ReLU, one without a ceiling; None where there was
            none, or it has.
        x, shift, weight, diagonal: as in :func:`~ce_mm.ops.group_affine`.
        dmean, dsquare, dsecond: the gradients of the moments, each None where nothing depends on it.

    Returns:
        dx, (N, C, H, W).
    """
    return kernels(x).input_gradient(gradient, rectified, x, shift, weight, diagonal, dmean, dsquare, dsecond)


@input_gradient.register_fake
def _(gradient, rectified, x, shift, weight, diagonal, dmean, dsquare, dsecond):
    return torch.empty_like(x)
