"""The backend of CPUs: the four passes over a map, compiled by Numba for the machine that they run on.

A pass reads and writes a map once, tile by tile (:mod:`ce_mm.ops.backends.numba_tiles`), on PyTorch's threads
(:mod:`ce_mm.ops.backends.numba_threads`). Both backward and forward have one that sums
(:mod:`ce_mm.ops.backends.numba_sums`) and one that maps (:mod:`ce_mm.ops.backends.numba_affine`).

Maps are float32, float16 or bfloat16, all else float32. Sums are taken in float32 inside a tile, in float64 over
tiles.
"""
import math

import torch
from torch import Tensor

from ce_mm.ops.backends import plain
from ce_mm.ops.backends.numba_affine import Term, store_affine
from ce_mm.ops.backends.numba_coefficients import (
    COEFFICIENTS_GROUP,
    coefficients,
    coefficients_backward,
    move_averages,
    needed_shift,
)
from ce_mm.ops.backends.numba_sums import sums
from ce_mm.ops.backends.numba_views import KINDS
from ce_mm.ops.backends.plain import ASKS, OVERWRITES, contiguous, in_format_of

__all__ = [
    "ASKS", "COEFFICIENTS_GROUP", "OVERWRITES", "PRECISE", "coefficients", "coefficients_backward", "group_affine",
    "input_gradient", "moments", "move_averages", "needed_shift", "output_sums",
]  # fmt: skip


PRECISE = True


def moments(x: Tensor, shift: Tensor, group_size: int, products: bool, per_sample: bool) -> tuple[Tensor, ...]:
    """Mean and variance of z, and, if asked, the mean of z zᵀ inside each group; see :func:`ce_mm.ops.moments`.

    The variance is taken about a value of each sample's own, or it would cancel where that lies far from the shift.
    """
    if shift.dtype != torch.float32:
        return plain.moments(x, shift, group_size, products, per_sample)
    return sums(_readable(x), shift.contiguous(), group_size, products, per_sample)


def group_affine(
    x: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    diagonal: Tensor | None,
    bias: Tensor,
    residual: Tensor | None,
    rectifier: float | None,
    overwrite: bool = False,
) -> Tensor:
    """The affine map, residual add and rectifier, written over x if asked; see :func:`ce_mm.ops.group_affine`."""
    if shift.dtype != torch.float32:
        return plain.group_affine(x, shift, weight, diagonal, bias, residual, rectifier, overwrite)
    x = _readable(x)
    if residual is not None:
        overwrite &= residual.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()  # it may be read twice
        residual = in_format_of(x, _readable(residual if residual.dtype in KINDS else residual.float()))
    y = x if overwrite else torch.empty_like(x)
    floor, ceiling = (-math.inf, math.inf) if rectifier is None else (0.0, rectifier)
    term = Term(contiguous(weight), contiguous(diagonal))
    store_affine(y, x, shift.contiguous(), term, bias.contiguous(), residual=residual, floor=floor, ceiling=ceiling)
    return y


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
) -> tuple[Tensor, ...]:
    """First pass of the backward: the gradient before the rectifier, and its sums; see :mod:`ce_mm.ops.joint`."""
    if shift.dtype != torch.float32:
        return plain.output_sums(dy, x, shift, rectified, rectifier, keep, group_size, products, per_sample)
    x = _readable(x)
    dy = in_format_of(x, _readable(dy))
    rectified = None if rectified is None else in_format_of(x, rectified)
    ceiling = math.inf if rectifier is None else rectifier
    gradient = torch.empty_like(dy) if keep else None
    found = sums(x, shift.contiguous(), group_size, products, per_sample, dy, rectified, ceiling, gradient)
    return dy.new_empty(0) if gradient is None else gradient, *found


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
    """Second pass of the backward: dx; see :mod:`ce_mm.ops.joint`."""
    if shift.dtype != torch.float32:
        return plain.input_gradient(gradient, rectified, x, shift, weight, diagonal, slope, slopes, offset)
    x = _readable(x)
    dx = torch.empty_like(x)
    of_gradient = Term()
    if gradient is not None:
        gradient, of_gradient = in_format_of(x, _readable(gradient)), Term(contiguous(weight), contiguous(diagonal))
        rectified = None if rectified is None else in_format_of(x, rectified)
    store_affine(
        dx, x, shift.contiguous(), Term(contiguous(slope), contiguous(slopes)), contiguous(offset),
        gradient=gradient, rectified=rectified, of_gradient=of_gradient, transposed=True,
    )  # fmt: skip
    return dx


def _readable(values: Tensor) -> Tensor:
    """What has its values in memory, as a negative view of another tensor, and zeros that autograd only stands for,
    do not."""
    if values._is_zerotensor():
        return torch.zeros(values.shape, dtype=values.dtype, device=values.device)
    return values.resolve_neg()
