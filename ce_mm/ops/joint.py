"""One backward for two operators: how the gradient of a layer reads its maps twice and no more.

The loss depends on x along two ways: through the moments, and through the map y = W (x - shift) + t itself. Autograd
would give each operator its own pass for dx, and one more to add them. Instead :func:`~ce_mm.ops.moments` also returns
a *link*, four tensors of no content that :func:`~ce_mm.ops.group_affine` takes as inputs. Backward, the affine reduces
dy and x to the gradients of its coefficients (:func:`output_sums`, the first pass) and hands dy, y and W to the node of
the moments as the "gradients" of the link. Autograd runs that node last, when the coefficients' gradients have come
down to those of the moments, and it writes dx at once (:func:`input_gradient`, the second pass):

    dx = W_nᵀ dy + (dm_n + 2 dq_n ⊙ z + (dE + dEᵀ) z) / (H·W) = W_nᵀ dy + (S + Diag(s_n)) z + o_n

This keeps every step a plain function of tensors, so that autograd, torch.compile and export see nothing unusual.
"""
import math

import torch
from torch import Tensor

from ce_mm.ops.backends import choose
from ce_mm.ops.custom_op import operator, product_shape


@operator("ce_mm::output_sums")
def output_sums(
    dy: Tensor,
    x: Tensor,
    shift: Tensor,
    rectified: Tensor | None,
    rectifier: float | None,
    keep: bool,
    group_size: int,
    products: bool,
    per_sample: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The first pass: one read of dy and x.

    Args:
        dy: (N, C, H, W), the gradient of y.
        x, shift, group_size: as in :func:`~ce_mm.ops.group_affine`.
        rectified: y itself, positive where a rectifier let it through, or None where there was none.
        rectifier: the ceiling of that, where y has which no gradient flows: ``math.inf`` of a ReLU.
        keep: whether to write the gradient before the rectifier too, for others to use; without, the first result is
            empty.
        products: whether to sum dy zᵀ; without, the last result is empty.
        per_sample: whether to keep the products of each sample apart.

    Returns:
        gradient: (N, C, H, W), dy where y is positive, if kept.
        sums: (2, N, C), the gradient's sums over the positions, dt, and those of gradient ⊙ z.
        product: (N or 1, C/g, g, g), the sums of gradient zᵀ inside each group, dW.
    """
    if rectified is not None and rectifier != math.inf:
        # As y has it where it was cut off; on the CPU also where PyTorch's default is a GPU, which would be waited for.
        rectifier = torch.tensor(rectifier, dtype=rectified.dtype, device="cpu").item()
    passes = choose(x.device, x.dtype, group_size, not x.numel())
    return passes.output_sums(dy, x, shift, rectified, rectifier, keep, group_size, products, per_sample)


@output_sums.register_fake
def _(
    dy: Tensor, x: Tensor, shift: Tensor, rectified: Tensor | None, rectifier: float | None, keep: bool,
    group_size: int, products: bool, per_sample: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
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
    slope: Tensor | None,
    slopes: Tensor | None,
    offset: Tensor | None,
) -> Tensor:
    """The second pass: one read of the gradient and x, one write of dx.

    Args:
        gradient: (N, C, H, W), that of y, or None where y did not depend on x.
        rectified: y itself, where the gradient has yet to pass its ReLU; None where there was none, or it has.
        x, shift, weight, diagonal: as in :func:`~ce_mm.ops.group_affine`.
        slope: S, (1 or N, C/g, g, g), symmetric, or None.
        slopes: s_n, (N, C), or None.
        offset: o_n, (N, C), or None.

    Returns:
        dx, (N, C, H, W).
    """
    group_size = next((matrix.shape[-1] for matrix in (weight, slope) if matrix is not None), 1)
    passes = choose(x.device, x.dtype, group_size, not x.numel())
    return passes.input_gradient(gradient, rectified, x, shift, weight, diagonal, slope, slopes, offset)


@input_gradient.register_fake
def _(gradient: Tensor | None, rectified: Tensor | None, x: Tensor, *others: Tensor | None) -> Tensor:
    return torch.empty_like(x)
