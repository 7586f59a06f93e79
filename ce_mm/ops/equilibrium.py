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
    batch_norm_affine,
    batch_statistics,
    covariance,
    equilibrium_affine,
    reweighting,
)
from ce_mm.ops.gate import Between, Gate, logit, logit_backward
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
    instance: Tensor,
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
        instance: (2, N, C), m_n and v_n.
        source: E, (1, C/g, g, g), to take the statistics from this batch; or the statistics to take instead, which no
            gradient reaches.
        norm_weight, norm_bias: γ and β, (C,), or None for 1 and 0.
        gate: f.
        mix: the logit of λ, (1,).
        norm_eps: added to the variance by batch norm.
        eps: ε, added to the diagonal of Σ.
        iterations: T, Newton-Schulz steps.
        bessel: a factor of σ̃², 1 or H·W / (H·W - 1).

    Returns:
        In the type of instance: the coefficients, differentiable once, and without gradient the statistics used.
    """
    if isinstance(source, Tensor):
        second, given = source, None
    else:
        second, given = None, Statistics(*(value.detach() for value in source))
    tensors = instance, second, *(given or (None,) * 4), norm_weight, norm_bias, *gate[:4], mix
    kernels = coefficient_kernels(*(tensor for tensor in tensors if tensor is not None))
    if kernels is not None and kernels.in_reach(instance, (source if given is None else given.whitening).shape[-1]):
        tensors = (None if tensor is None else tensor.contiguous() for tensor in tensors)
        results = _Fused.apply(kernels, *tensors, gate.eps, norm_eps, eps, iterations, bessel)
        return Coefficients(*results[:3]), given or Statistics(*results[3:])
    mean, variance, whitening, inv_std_scale = given or (*batch_statistics(instance), None, None)
    scale, offset = batch_norm_affine(mean, variance, norm_weight, norm_bias, norm_eps)
    if given is None:
        whitening = newton_schulz(covariance(mean, second, scale, eps), iterations)
    weights, inv_std_scale = reweighting(instance, scale, gate, bessel, inv_std_scale)
    coefficients = Coefficients(*equilibrium_affine(scale, offset, whitening, weights, mix))
    return coefficients, given or Statistics(mean.detach(), variance.detach(), whitening.detach(), inv_std_scale)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: ModuleType,
        instance: Tensor,
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
        normed = kernels.base_norm(instance, second, mean, variance, norm_weight, norm_bias, *numbers)
        whitening = normed.whitening if whitening is None else whitening
        values, between = logit(normed.spread, Gate(fc1, ln_weight, ln_bias, fc2, ln_eps))
        *coefficients, inv_std_scale = kernels.combine(normed, whitening, values, mix, inv_std_scale)
        statistics = normed.mean, normed.variance, whitening, inv_std_scale
        ctx.save_for_backward(
            instance, second, norm_weight, *statistics, mix, normed.scale, normed.offset, normed.spread, values,
            *between, fc1, ln_weight, ln_bias, fc2,
        )  # fmt: skip
        ctx.kernels, ctx.ln_eps, ctx.numbers = kernels, ln_eps, numbers
        ctx.set_materialize_grads(False)  # a launch for each of the statistics
        if second is None:
            return tuple(coefficients)
        ctx.mark_non_differentiable(*statistics)
        return *coefficients, *statistics

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dweight: Tensor | None, ddiagonal: Tensor | None, dbias: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        (
            instance, second, norm_weight, mean, variance, whitening, inv_std_scale, mix, scale, offset, spread, values,
            *rest,
        ) = ctx.saved_tensors  # fmt: skip
        dwhitening, dscale, doffset, dvalues, (dmixes, dinv_std_scales) = ctx.kernels.combine_backward(
            torch.zeros_like(whitening)[None] if dweight is None else dweight,
            torch.zeros_like(values) if ddiagonal is None else ddiagonal,
            torch.zeros_like(values) if dbias is None else dbias,
            scale, offset, whitening, values, mix, inv_std_scale,
        )  # fmt: skip
        dspread, dgate = logit_backward(dvalues, spread, Gate(*rest[4:], ctx.ln_eps), Between(*rest[:4]))
        dinstance, dsecond, dnorm_weight, dnorm_bias = ctx.kernels.base_norm_backward(
            dwhitening, dscale, doffset, dspread, dinv_std_scales, inv_std_scale,
            instance, second, mean, variance, norm_weight, *ctx.numbers,
        )  # fmt: skip
        needed = ctx.needs_input_grad
        return (
            None, dinstance, dsecond, None, None, None, None, dnorm_weight if needed[7] else None,
            dnorm_bias if needed[8] else None, *dgate[:4], dmixes.sum().view(1), None, *(None,) * len(ctx.numbers),
        )  # fmt: skip
