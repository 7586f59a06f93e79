"""Second step of the usual layer, all of it: batch norm and both branches, in training and in inference.

In plain PyTorch it is the chain of :mod:`ce_mm.ops.channel_equilibrium`'s steps. Where the Triton kernels run, so many
launches would take longer than the passes over the map, and it is one autograd function of a few kernels.
"""
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ce_mm.ops.backend import coefficient_kernels
from ce_mm.ops.channel_equilibrium import (
    Gate,
    batch_norm_affine,
    batch_statistics,
    covariance,
    equilibrium_affine,
    reweighting,
)
from ce_mm.ops.newton_schulz import newton_schulz


class Statistics(NamedTuple):
    """What training takes from a batch and inference from moving averages."""

    mean: Tensor  #: of z, (C,)
    variance: Tensor  #: biased, (C,)
    whitening: Tensor  #: Σ^(-1/2), (C/g, g, g)
    inv_std_scale: Tensor  #: s^(-1/2), (1,)


class Coefficients(NamedTuple):
    """Those of the group affine."""

    weight: Tensor  #: W, (1, C/g, g, g)
    diagonal: Tensor  #: e_n, (N, C)
    bias: Tensor  #: t_n, (N, C)


def equilibrium(
    means: Tensor,
    source: Tensor | Statistics,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    gate: Gate,
    mix: Tensor,
    *,
    norm_eps: float,
    eps: float,
    iterations: int,
    bessel: float,
) -> tuple[Coefficients, Statistics]:
    """From the moments of a batch to the coefficients of batch norm and both branches of CE.

    Args:
        means: (2, N, C), m_n and diag E_n.
        source: E, (1, C/g, g, g), to take the statistics from this batch; or the statistics to take instead.
        norm_weight, norm_bias: γ and β, (C,), or None for 1 and 0.
        gate: f.
        mix: the logit of λ, (1,).
        norm_eps: added to the variance by batch norm.
        eps: ε, added to the diagonal of Σ.
        iterations: T, Newton-Schulz steps.
        bessel: a factor of σ̃², 1 or H·W / (H·W - 1).

    Returns:
        In the type of means: the coefficients, differentiable once, and without gradient the statistics used.
    """
    of_batch = isinstance(source, Tensor)
    group_size = (source if of_batch else source.whitening).shape[-1]
    kernels = coefficient_kernels(means)
    if kernels is not None and kernels.in_reach(means, group_size):
        second, given = (source, (None,) * 4) if of_batch else (None, source)
        tensors = means, second, *given, norm_weight, norm_bias, gate.fc1, gate.ln_weight, gate.ln_bias, gate.fc2, mix
        results = _Fused.apply(kernels, *tensors, gate.eps, norm_eps, eps, iterations, bessel)
        return Coefficients(*results[:3]), Statistics(*results[3:]) if of_batch else source
    mean, variance, whitening, inv_std_scale = (*batch_statistics(means), None, None) if of_batch else source
    scale, offset = batch_norm_affine(mean, variance, norm_weight, norm_bias, norm_eps)
    if of_batch:
        whitening = newton_schulz(covariance(mean, source, scale, eps), iterations)
    instance, inv_std_scale = reweighting(means, scale, gate, bessel, inv_std_scale)
    coefficients = Coefficients(*equilibrium_affine(scale, offset, whitening, instance, mix))
    if of_batch:
        source = Statistics(mean.detach(), variance.detach(), whitening.detach(), inv_std_scale)
    return coefficients, source


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: ModuleType,
        means: Tensor,
        second: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        whitening: Tensor | None,
        inv_std_scale: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        fc1: Tensor,
        ln_weight: Tensor,
        ln_bias: Tensor,
        fc2: Tensor,
        mix: Tensor,
        ln_eps: float,
        *numbers: Any,
    ) -> tuple[Tensor, ...]:
        base = kernels.base_norm(means, second, mean, variance, norm_weight, norm_bias, *numbers)
        whitening = base.whitening if whitening is None else whitening
        hidden = base.spread @ fc1.mT
        normed, centre, inv_std = torch.native_layer_norm(hidden, ln_weight.shape, ln_weight, ln_bias, ln_eps)
        active = normed.relu_()
        logit = active @ fc2.mT
        *coefficients, used = kernels.combine(base, whitening, logit, mix, inv_std_scale)
        ctx.save_for_backward(
            means, second, base.mean, base.variance, whitening, used, norm_weight, norm_bias, fc1, ln_weight, ln_bias,
            fc2, mix, base.scale, base.offset, base.spread, hidden, centre, inv_std, active, logit,
        )  # fmt: skip
        ctx.kernels, ctx.numbers = kernels, numbers
        ctx.set_materialize_grads(False)  # a launch for each of the statistics
        if second is None:
            return tuple(coefficients)
        statistics = base.mean, base.variance, whitening, used
        ctx.mark_non_differentiable(*statistics)
        return *coefficients, *statistics

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dweight: Tensor | None, ddiagonal: Tensor | None, dbias: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        (
            means, second, mean, variance, whitening, inv_std_scale, norm_weight, norm_bias, fc1, ln_weight, ln_bias,
            fc2, mix, scale, offset, spread, hidden, centre, inv_std, active, logit,
        ) = ctx.saved_tensors  # fmt: skip
        dwhitening, dscale, doffset, dlogit, (dmixes, dinv_std_scales) = ctx.kernels.combine_backward(
            torch.zeros_like(whitening)[None] if dweight is None else dweight,
            torch.zeros_like(logit) if ddiagonal is None else ddiagonal,
            torch.zeros_like(logit) if dbias is None else dbias,
            scale, offset, whitening, logit, mix, inv_std_scale,
        )  # fmt: skip
        dnormed = torch.ops.aten.threshold_backward(dlogit @ fc2, active, 0)
        dhidden, dln_weight, dln_bias = torch.ops.aten.native_layer_norm_backward(
            dnormed, hidden, ln_weight.shape, centre, inv_std, ln_weight, ln_bias, [True, True, True]
        )
        dmeans, dsecond, dnorm_weight, dnorm_bias = ctx.kernels.base_norm_backward(
            dwhitening, dscale, doffset, dhidden @ fc1, dinv_std_scales, inv_std_scale,
            means, second, mean, variance, norm_weight, norm_bias, *ctx.numbers,
        )  # fmt: skip
        return (
            None, dmeans, dsecond, None, None, None, None, None if norm_weight is None else dnorm_weight,
            None if norm_bias is None else dnorm_bias, dhidden.mT @ spread, dln_weight, dln_bias,
            dlogit.mT @ active, dmixes.sum().view(1), None, *(None,) * len(ctx.numbers),
        )  # fmt: skip
