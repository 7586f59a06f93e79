"""What IR takes its sigmoid of, ``W2 ReLU(LayerNorm(W1 σ̃²))`` (paper eq. 21), and the backward of it."""
import math
from typing import NamedTuple

import torch
from torch import Tensor


class Gate(NamedTuple):
    """The parameters of ``f = Sigmoid(W2 ReLU(LayerNorm(W1 σ̃²)))``."""

    fc1: Tensor  #: W1, (C/r, C)
    ln_weight: Tensor  #: (C/r,)
    ln_bias: Tensor  #: (C/r,)
    fc2: Tensor  #: W2, (C, C/r)
    eps: float  #: of the LayerNorm


class Between(NamedTuple):
    """What :func:`logit_backward` needs of :func:`logit`."""

    hidden: Tensor  #: W1 σ̃², (N, C/r)
    centre: Tensor  #: mean of hidden, (N, 1)
    inv_std: Tensor  #: one over its spread, (N, 1)
    active: Tensor  #: after the ReLU, (N, C/r)


def logit(variance: Tensor, gate: Gate) -> tuple[Tensor, Between]:
    """What the sigmoid is taken of, (N, C), from σ̃², (N, C)."""
    hidden = variance @ gate.fc1.mT
    normed, *moments = torch.native_layer_norm(hidden, hidden.shape[1:], gate.ln_weight, gate.ln_bias, gate.eps)
    active = normed.relu_()
    return active @ gate.fc2.mT, Between(hidden, *moments, active)


def logit_backward(dlogit: Tensor, variance: Tensor, gate: Gate, between: Between) -> tuple[Tensor, Gate]:
    """The gradients of σ̃², and of the parameters in their places."""
    hidden, centre, inv_std, active = between
    dnormed = torch.ops.aten.threshold_backward(dlogit @ gate.fc2, active, 0)
    dhidden, dln_weight, dln_bias = torch.ops.aten.native_layer_norm_backward(
        dnormed, hidden, hidden.shape[1:], centre, inv_std, gate.ln_weight, gate.ln_bias, [True, True, True]
    )
    dfc1, dfc2 = _sum_of_outer_products(dhidden, variance), dlogit.mT @ active
    return dhidden @ gate.fc1, Gate(dfc1, dln_weight, dln_bias, dfc2, None)


def _sum_of_outer_products(left: Tensor, right: Tensor) -> Tensor:
    """``leftᵀ @ right`` of few rows, (N, A) and (N, B), as a batch of products: BLAS is slow at one that thin."""
    n, rows = left.shape
    parts = math.gcd(rows, 8)
    return torch.bmm(left.T.view(parts, rows // parts, n), right.expand(parts, -1, -1)).view(rows, -1)
