"""Second step of a layer: from moments to the coefficients of the group affine, on small tensors.

Everything is written for a base norm that is affine in z = x - shift, ``x̃ = a ⊙ z + b``, with a and b of shape (1, C),
or (N, C) for a base norm that differs between samples (:mod:`ce_mm.ops.sample_norms`, which has its covariance too).
Neither x nor x̃ appears here; their statistics follow from the moments m_n, v_n and E_n of z.

The backward of what has many operations is written by hand: the tensors are so small that autograd's nodes would cost
more than the arithmetic, and at small maps more than the maps.
"""
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ce_mm.ops.gate import Between, Gate, logit, logit_backward

#: s, the mean instance variance, is clamped from below at this.
MIN_VARIANCE = 1e-5


def fit_group_size(channels: int, group_size: int) -> int:
    """The group size that divides ``channels``: ``group_size`` (at least 1), halved until it does."""
    while channels % group_size:
        group_size //= 2
    return group_size


def batch_statistics(instance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of z over the whole batch.

    Args:
        instance: (2, N, C), m_n and v_n.

    Returns:
        Both (C,), differentiable once.
    """
    return _BatchStatistics.apply(instance)


class _BatchStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, instance: Tensor) -> tuple[Tensor, Tensor]:
        means, inside = instance
        between, mean = torch.var_mean(means, 0, correction=0)
        ctx.save_for_backward(means, mean)
        return mean, between + inside.mean(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dmean: Tensor, dvariance: Tensor) -> Tensor:
        means, mean = ctx.saved_tensors
        dinstance = torch.empty_like(means.expand(2, -1, -1))
        torch.addcmul(dmean, means - mean, dvariance, value=2, out=dinstance[0])
        dinstance[1] = dvariance
        return dinstance.div_(means.shape[0])


def batch_norm_affine(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Batch norm of z as ``a z + b``.

    Args:
        mean, variance: (C,), of z over the batch, or the running ones.
        weight, bias: γ and β, (C,), or None for 1 and 0.
        eps: added to the variance.

    Returns:
        a and b, both (1, C), differentiable once.
    """
    return _BatchNormAffine.apply(mean, variance, weight, bias, eps)


class _BatchNormAffine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        inv_std = (variance + eps).rsqrt_()
        scale = inv_std.clone() if weight is None else inv_std * weight
        offset = -scale * mean if bias is None else torch.addcmul(bias, scale, mean, value=-1)
        ctx.save_for_backward(mean, inv_std, scale)
        return scale[None], offset[None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dscale: Tensor, doffset: Tensor) -> tuple[Tensor | None, ...]:
        mean, inv_std, scale = ctx.saved_tensors
        dscale, doffset = dscale[0], doffset[0]
        dscale = torch.addcmul(dscale, doffset, mean, value=-1)
        dweight = dscale * inv_std
        dvariance = (dweight * scale).mul_(inv_std).mul_(-0.5)
        needed = ctx.needs_input_grad
        return -doffset * scale, dvariance, dweight if needed[2] else None, doffset if needed[3] else None, None


def covariance(mean: Tensor, second: Tensor, scale: Tensor, eps: float = 0.0) -> Tensor:
    """Σ, the covariance of x̃ = a z + b over all positions of the batch inside each group, plus ε I (paper eq. 20).

    ``a aᵀ ⊙ (E - m mᵀ) + ε I`` with m and E the means of m_n and E_n over the batch.

    Args:
        mean: m, (C,).
        second: E, (1, C/g, g, g).
        scale: a, (1, C).
        eps: ε.

    Returns:
        (C/g, g, g), differentiable once.
    """
    return _Covariance.apply(mean, second, scale, eps)


class _Covariance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, second: Tensor, scale: Tensor, eps: float) -> Tensor:
        groups, g = second.shape[1:3]
        m, a = mean.view(groups, g, 1), scale.view(groups, g, 1)
        of_z = torch.addcmul(second[0], m, m.mT, value=-1)
        outer = a * a.mT
        ctx.save_for_backward(m, a, of_z, outer)
        sigma = of_z * outer
        sigma.diagonal(dim1=-2, dim2=-1).add_(eps)
        return sigma

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        m, a, of_z, outer = ctx.saved_tensors
        dsecond = grad * outer
        douter = grad * of_z
        da = torch.bmm(douter + douter.mT, a)
        dm = torch.bmm(dsecond + dsecond.mT, m).neg_()
        return dm.view(-1), dsecond[None], da.view(1, -1), None


def reweighting(
    instance: Tensor, scale: Tensor, gate: Gate, bessel: float, inv_std_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Instance reweighting, ``d_n = f(σ̃²_n) s^(-1/2)`` with ``σ̃²_n = a² v_n`` (paper eqs. 17, 19, 21).

    Args:
        instance: (2, N, C), m_n and v_n.
        scale: a, (1 or N, C).
        gate: f.
        bessel: a factor of σ̃², 1 or H·W / (H·W - 1).
        inv_std_scale: s^(-1/2), (1,), of the moving average or of a larger batch; None takes it from this batch, where
            s is the mean of σ̃², at least MIN_VARIANCE.

    Returns:
        d_n, (N, C), differentiable once, and the s^(-1/2) used, (1,), without gradient.
    """
    return _Reweighting.apply(instance, scale, *gate, bessel, inv_std_scale)


class _Reweighting(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        instance: Tensor,
        scale: Tensor,
        fc1: Tensor,
        ln_weight: Tensor,
        ln_bias: Tensor,
        fc2: Tensor,
        eps: float,
        bessel: float,
        inv_std_scale: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        of_z = instance[1]
        factor = scale.square() * bessel
        variance = of_z * factor
        ctx.of_batch = inv_std_scale is None
        if inv_std_scale is None:
            inv_std_scale = variance.mean().clamp_(min=MIN_VARIANCE).rsqrt_().view(1)
        parameters = Gate(fc1, ln_weight, ln_bias, fc2, eps)
        gate, between = logit(variance, parameters)
        gate.sigmoid_()
        ctx.save_for_backward(
            scale, of_z, factor, variance, inv_std_scale, gate, *between, fc1, ln_weight, ln_bias, fc2
        )
        ctx.eps, ctx.bessel = eps, bessel
        ctx.mark_non_differentiable(inv_std_scale)
        return gate * inv_std_scale, inv_std_scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scale, of_z, factor, variance, inv_std_scale, gate, *rest = ctx.saved_tensors
        dlogit = torch.ops.aten.sigmoid_backward(grad * inv_std_scale, gate)
        dvariance, dgate = logit_backward(dlogit, variance, Gate(*rest[4:], ctx.eps), Between(*rest[:4]))
        if ctx.of_batch:
            # Of s^(-1/2) with s the mean: -s^(-3/2) / 2 for each of the variances; nothing where s is clamped.
            cube = inv_std_scale**3 * (inv_std_scale < MIN_VARIANCE**-0.5)
            dvariance += (grad * gate).sum() * cube * (-0.5 / grad.numel())
        dscale = (dvariance * of_z).sum_to_size(scale.shape) * scale * (2 * ctx.bessel)
        dinstance = torch.zeros_like(of_z.expand(2, -1, -1))
        torch.mul(dvariance, factor, out=dinstance[1])
        dinv_std_scale = (grad * gate).sum().view(1) if ctx.needs_input_grad[8] else None
        return dinstance, dscale, *dgate, None, dinv_std_scale


def equilibrium_affine(
    scale: Tensor, offset: Tensor, whitening: Tensor | None, reweighting: Tensor | None, mix: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """The coefficients of the whole layer: A_n = λ Σ^(-1/2) + (1-λ) Diag(d_n), W_n = A_n Diag(a_n), t_n = A_n b_n.

    W_n is returned as a matrix and a diagonal, W_n = W + Diag(e_n). Where a is the same for all samples, so is W: at
    small maps a matrix for each sample would outweigh x.

    Args:
        scale, offset: a_n and b_n of the base norm, both (1, C) or both (N, C).
        whitening: Σ^(-1/2), (C/g, g, g), or None where the layer has no batch decorrelation.
        reweighting: d_n, (N, C), or None where the layer has no instance reweighting.
        mix: the logit of λ, (1,); used where both branches are there, one branch alone is taken as it is.

    Returns:
        weight: W, (1 or N, C/g, g, g) as scale, or None without whitening.
        diagonal: e_n, (N, C), or None without reweighting.
        bias: t_n, (N or 1, C).
    """
    if whitening is None:
        return None, reweighting * scale, reweighting * offset
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
    @once_differentiable
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
