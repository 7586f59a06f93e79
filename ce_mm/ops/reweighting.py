"""Instance reweighting: a gate for every sample and channel from the variances inside that sample.

``d_n = f(σ̃²_n) s^(-1/2)`` with ``f = Sigmoid(W2 ReLU(LayerNorm(W1 σ̃²)))`` (paper eqs. 17, 19 and 21).
"""
import math
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from ce_mm.ops.custom_op import once_in_full_precision

#: s, the mean instance variance, is clamped from below at this.
MIN_VARIANCE = 1e-5


class Gate(NamedTuple):
    """The parameters of ``f = Sigmoid(W2 ReLU(LayerNorm(W1 σ̃²)))``."""

    fc1: Tensor  #: W1, (C/r, C)
    ln_weight: Tensor  #: (C/r,)
    ln_bias: Tensor  #: (C/r,)
    fc2: Tensor  #: W2, (C, C/r)
    eps: float  #: of the LayerNorm

    @classmethod
    def of(cls, fc1: nn.Linear, ln: nn.LayerNorm, fc2: nn.Linear, dtype: torch.dtype) -> Self:
        """Those of three layers, in the type of the moments.

        Raises:
            TypeError: something else stands in the place of one, with a forward that would never be called.
        """
        check_gate(fc1, ln, fc2)
        return cls(fc1.weight.to(dtype), ln.weight.to(dtype), ln.bias.to(dtype), fc2.weight.to(dtype), ln.eps)


def check_gate(fc1: nn.Module, ln: nn.Module, fc2: nn.Module) -> None:
    """Refuse what is not two linear layers without bias, and a LayerNorm, of which the parameters are all.

    Raises:
        TypeError: something else stands in the place of one, with a forward that would never be called.
    """
    for name, module, kind in (("fc1", fc1, nn.Linear), ("ln", ln, nn.LayerNorm), ("fc2", fc2, nn.Linear)):
        # Pruning, and spectral and weight norm before they were parametrisations, compute the weight in a hook.
        waits_for_hook = module._forward_pre_hooks and "weight" not in module._parameters
        calls_its_own = type(module).forward is not kind.forward or "forward" in vars(module)
        if calls_its_own or waits_for_hook or (module.bias is None) != (kind is nn.Linear):
            plain = "a plain nn.Linear without bias" if kind is nn.Linear else "a plain nn.LayerNorm"
            raise TypeError(
                f"ir.{name} must be {plain}, of which CE uses the weight alone, got {module!r}; leave CE's ir out "
                "where layers are adapted or quantised, or fold the network first, which leaves none in it"
            )


class Between(NamedTuple):
    """What :func:`logit_backward` needs of :func:`logit`."""

    hidden: Tensor  #: W1 σ̃², (N, C/r)
    centre: Tensor  #: mean of hidden, (N, 1)
    inv_std: Tensor  #: one over its spread, (N, 1)
    active: Tensor  #: after the ReLU, (N, C/r)


def bessel(positions: int, correction: int) -> float:
    """The factor of the biased σ̃² of so many positions; without correction 1."""
    return positions / max(positions - correction, 1)


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
    @once_in_full_precision
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scale, of_z, factor, variance, inv_std_scale, gate, hidden, centre, inv_std, active, *rest = ctx.saved_tensors
        fc1, ln_weight, ln_bias, fc2 = rest
        dlogit = torch.ops.aten.sigmoid_backward(grad * inv_std_scale, gate)
        parameters, between = Gate(fc1, ln_weight, ln_bias, fc2, ctx.eps), Between(hidden, centre, inv_std, active)
        dvariance, dgate = logit_backward(dlogit, variance, parameters, between)
        if ctx.of_batch:
            # Of s^(-1/2) with s the mean: -s^(-3/2) / 2 for each of the variances; nothing where s is clamped.
            cube = inv_std_scale**3 * (inv_std_scale < MIN_VARIANCE**-0.5)
            dvariance += (grad * gate).sum() * cube * (-0.5 / grad.numel())
        dscale = (dvariance * of_z).sum_to_size(scale.shape) * scale * (2 * ctx.bessel)
        dinstance = torch.zeros_like(of_z.expand(2, -1, -1))
        torch.mul(dvariance, factor, out=dinstance[1])
        dinv_std_scale = (grad * gate).sum().view(1) if ctx.needs_input_grad[8] else None
        return dinstance, dscale, *dgate, None, None, dinv_std_scale


def logit(variance: Tensor, gate: Gate) -> tuple[Tensor, Between]:
    """What the sigmoid is taken of, (N, C), from σ̃², (N, C)."""
    hidden = variance @ gate.fc1.mT
    normed, centre, inv_std = torch.native_layer_norm(
        hidden, hidden.shape[1:], gate.ln_weight, gate.ln_bias, gate.eps
    )
    active = normed.relu_()
    return active @ gate.fc2.mT, Between(hidden, centre, inv_std, active)


def logit_backward(dlogit: Tensor, variance: Tensor, gate: Gate, between: Between) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The gradients of σ̃², and of the four parameters in their order."""
    hidden, centre, inv_std, active = between
    dnormed = torch.ops.aten.threshold_backward(dlogit @ gate.fc2, active, 0)
    dhidden, dln_weight, dln_bias = torch.ops.aten.native_layer_norm_backward(
        dnormed, hidden, hidden.shape[1:], centre, inv_std, gate.ln_weight, gate.ln_bias, [True, True, True]
    )
    dfc1, dfc2 = _sum_of_outer_products(dhidden, variance), dlogit.mT @ active
    return dhidden @ gate.fc1, (dfc1, dln_weight, dln_bias, dfc2)


def _sum_of_outer_products(left: Tensor, right: Tensor) -> Tensor:
    """``leftᵀ @ right`` of few rows, (N, A) and (N, B), as a batch of products: BLAS is slow at one that thin."""
    n, rows = left.shape
    parts = math.gcd(rows, 8)
    return torch.bmm(left.T.view(parts, rows // parts, n), right.expand(parts, -1, -1)).view(rows, -1)
