"""Second step of a layer: from moments to the coefficients of the group affine, on small tensors.

    a, b of the base norm  →  Σ^(-1/2), batch decorrelation  →  d_n, instance reweighting  →  W_n, t_n

This is the one chain: for every base norm, every choice of branches and every source of statistics. What is not known
from elsewhere (the moving averages, the batch of all processes) is taken from the batch at hand. Of the usual case, a
batch norm with both branches, a backend may have a version of its own (:mod:`ce_mm.ops.usual`).

Neither x nor x̃ appears here; their statistics follow from the moments of z = x - shift.
"""
from typing import Any

import torch
from torch import Tensor

from ce_mm.ops.base_norms import BaseNorm
from ce_mm.ops.custom_op import once_in_full_precision
from ce_mm.ops.decorrelation import whitening as whitening_of
from ce_mm.ops.reweighting import Gate, bessel, reweighting
from ce_mm.ops.types import Coefficients, Decorrelation, Moments, Reweighting, Statistics

#: Nothing is known: all statistics are taken from the batch at hand.
UNKNOWN = Statistics()


def coefficients(
    moments: Moments,
    base: BaseNorm,
    bd: Decorrelation | None,
    ir: Reweighting | None,
    mix: Tensor | None,
    known: Statistics = UNKNOWN,
    seen: Moments | None = None,
) -> tuple[Coefficients, Statistics]:
    """From the moments of a batch to the coefficients of the whole layer.

    Args:
        moments: of z; with products where Σ is not known.
        base: the base norm.
        bd: the batch decorrelation, of which ``group_size``, ``iterations`` and ``eps`` are read, or None.
        ir: the instance reweighting, of which ``fc1``, ``ln``, ``fc2`` and ``correction`` are read, or None.
        mix: the logit of λ, (1,); used where both branches are there, one branch alone is taken as it is.
        known: the statistics to take instead of the batch's.
        seen: the moments that Σ is taken of, where they are not those of the map.

    Returns:
        The coefficients, in the type of the moments, and the statistics used.
    """
    work = moments.shift.dtype
    mix = None if mix is None else mix.to(work)
    mean, variance, whitening, inv_std_scale, values, _ = known
    if mean is None:
        mean, variance, values = base.statistics(moments)
    scale, offset = base.affine(moments, mean, variance)
    if bd is not None and whitening is None:
        own_mean = mean if seen is None and base.local_batch_norm else None
        seen = moments if seen is None else seen
        eps = bd.eps * (moments.positions / seen.positions)
        whitening = whitening_of(seen, scale, offset, eps, bd.iterations, own_mean)
    weights = None
    if ir is not None:
        assert moments.instance is not None
        gate, factor = Gate.of(ir.fc1, ir.ln, ir.fc2, work), bessel(moments.positions, ir.correction)
        weights, inv_std_scale = reweighting(moments.instance, scale, gate, factor, inv_std_scale)
    found = Statistics(mean, variance, whitening, inv_std_scale, values, known.mean_of_x)
    return Coefficients(*equilibrium_affine(scale, offset, whitening, weights, mix)), found


def equilibrium_affine(
    scale: Tensor, offset: Tensor, whitening: Tensor | None, reweighting: Tensor | None, mix: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """A_n = λ Σ^(-1/2) + (1-λ) Diag(d_n), W_n = A_n Diag(a_n), t_n = A_n b_n; without branches W_n = Diag(a_n).

    W_n is returned as a matrix and a diagonal, W_n = W + Diag(e_n). Where a is the same for all samples, so is W: at
    small maps a matrix for each sample would outweigh x.

    Args:
        scale, offset: a_n and b_n of the base norm, both (1, C) or both (N, C).
        whitening: Σ^(-1/2), (C/g, g, g), or None where the layer has no batch decorrelation.
        reweighting: d_n, (N, C), or None where the layer has no instance reweighting.
        mix: the logit of λ, (1,).

    Returns:
        Those of :class:`Coefficients`.
    """
    if whitening is None:
        return (None, scale, offset) if reweighting is None else (None, reweighting * scale, reweighting * offset)
    if reweighting is None:
        weight = whitening * _rows(scale, whitening)
        return weight, None, _vectors(torch.bmm(whitening, _columns(offset, whitening)))
    return _Equilibrium.apply(scale, offset, whitening, reweighting, mix)


def _rows(vectors: Tensor, matrices: Tensor) -> Tensor:
    """(N, C) as the factors (N, C/g, 1, g) of the columns of matrices (C/g, g, g)."""
    groups, g, _ = matrices.shape
    return vectors.view(-1, groups, 1, g)


def _columns(vectors: Tensor, matrices: Tensor) -> Tensor:
    """(N, C) as (C/g, g, N), what matrices (C/g, g, g) are multiplied with."""
    groups, g, _ = matrices.shape
    return vectors.T.view(groups, g, vectors.shape[0])


def _vectors(columns: Tensor) -> Tensor:
    """(C/g, g, N) as (N, C)."""
    return columns.flatten(0, 1).T


def _add_product(matrices: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``matrices + left @ right``; BLAS is slower than broadcasting for a single column and row."""
    return (torch.addcmul if left.shape[-1] == 1 else torch.baddbmm)(matrices, left, right)


class _Equilibrium(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scale: Tensor, offset: Tensor, whitening: Tensor, reweighting: Tensor, mix: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ratio = torch.sigmoid(mix)
        rest = 1 - ratio
        shared, own = whitening * ratio, reweighting * rest
        weight = shared * _rows(scale, shared)
        bias = torch.addcmul(_vectors(torch.bmm(shared, _columns(offset, shared))), own, offset)
        ctx.save_for_backward(scale, offset, whitening, reweighting, ratio, rest, shared, own)
        return weight, own * scale, bias

    @staticmethod
    @once_in_full_precision
    def backward(ctx: Any, dweight: Tensor, ddiagonal: Tensor, dbias: Tensor) -> tuple[Tensor, ...]:
        scale, offset, whitening, reweighting, ratio, rest, shared, own = ctx.saved_tensors
        dcolumns = _columns(dbias.sum_to_size(offset.shape), shared)
        dshared = (dweight * _rows(scale, shared)).sum_to_size(1, *shared.shape)[0]
        dshared = _add_product(dshared, dcolumns, _columns(offset, shared).mT)
        down = torch.addcmul(ddiagonal * scale, dbias, offset)
        dscale = (ddiagonal * own).sum_to_size(scale.shape) + (dweight * shared).sum(2).flatten(1)
        doffset = (dbias * own).sum_to_size(offset.shape) + _vectors(torch.bmm(shared.mT, dcolumns))
        dratio = torch.dot(dshared.view(-1), whitening.reshape(-1)) - torch.dot(down.view(-1), reweighting.view(-1))
        dmix = torch.ops.aten.sigmoid_backward(dratio.view(1), ratio)
        return dscale, doffset, dshared * ratio, down * rest, dmix
