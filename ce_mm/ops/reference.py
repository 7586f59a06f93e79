"""Channel Equilibrium literally as the paper writes it, to be read beside it: the truth for the rest of the package.

Nothing is shared with the other files and nothing is clever: the normalised map is formed, the covariance is taken from
it position by position, and PyTorch differentiates all of it. Equation numbers are those of arXiv 2003.00214, unless
another paper is named. For tests, benchmarks and readers; :mod:`ce_mm.layers` is what a network uses.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Gate(NamedTuple):
    """The parameters of ``f = Sigmoid(W2 ReLU(LayerNorm(W1 σ̃²)))`` (eq. 21)."""

    fc1: Tensor  #: W1, (C/r, C)
    ln_weight: Tensor  #: (C/r,)
    ln_bias: Tensor  #: (C/r,)
    fc2: Tensor  #: W2, (C, C/r)


class Averages(NamedTuple):
    """What a batch contributes to the moving averages (eq. 32), or these themselves; None of a branch that is not."""

    whitening: Tensor | None = None  #: Σ^(-1/2), (C/g, g, g)
    inv_std_scale: Tensor | None = None  #: s^(-1/2), (1,)


def equilibrium(
    base: Tensor,
    gate: Gate | None,
    mix: Tensor | None,
    *,
    branches: tuple[str, ...] = ("bd", "ir"),
    group_size: int = 16,
    iterations: int = 3,
    max_pool: bool = False,
    eps: float = 1e-5,
    correction: int = 0,
    running: Averages | None = None,
) -> tuple[Tensor, Averages]:
    """CE of the normalised map: ``D_n^(-1/2) x̃`` with ``D_n^(-1/2) = λ Σ^(-1/2) + (1-λ) Diag(v_n)^(-1/2)``.

    Args:
        base: x̃, (N, C, H, W), of a base norm.
        gate: of the instance reweighting.
        mix: the logit of λ, (1,), where both branches are there; one branch alone is taken unscaled.
        branches, group_size, iterations, max_pool, eps, correction: as :class:`ce_mm.layers.CENorm`'s.
        running: the moving averages, in inference.

    Returns:
        The equalised map, (N, C, H, W), and what the batch contributes to the averages.
    """
    decorrelated = reweighted = whitening = inv_std_scale = None
    if "bd" in branches:
        group_size = largest_fitting_group(base.shape[1], group_size)
        if running is None:
            whitening = whitening_matrix(base, group_size, iterations, eps, max_pool)
        else:
            whitening = running.whitening
        groups = base.unflatten(1, (-1, group_size))
        decorrelated = torch.einsum("cij,ncjhw->ncihw", whitening, groups).flatten(1, 2)
    if "ir" in branches:
        assert gate is not None
        variance = instance_variance(base, correction)
        if running is None:
            inv_std_scale = variance.mean().clamp(min=1e-5).rsqrt().view(1)
        else:
            inv_std_scale = running.inv_std_scale
            assert inv_std_scale is not None
        hidden = F.layer_norm(variance @ gate.fc1.T, gate.ln_weight.shape, gate.ln_weight, gate.ln_bias)
        weights = torch.sigmoid(F.relu(hidden) @ gate.fc2.T)
        reweighted = (weights * inv_std_scale)[:, :, None, None] * base
    batch = Averages(whitening, inv_std_scale)
    if decorrelated is not None and reweighted is not None:
        assert mix is not None
        ratio = torch.sigmoid(mix)
        return ratio * decorrelated + (1 - ratio) * reweighted, batch
    alone = reweighted if decorrelated is None else decorrelated
    assert alone is not None
    return alone, batch


def largest_fitting_group(channels: int, group_size: int) -> int:
    """The group size, halved until it divides the channels."""
    while channels % group_size:
        group_size //= 2
    return group_size


def whitening_matrix(base: Tensor, group_size: int, iterations: int, eps: float, max_pool: bool) -> Tensor:
    """Σ^(-1/2) of every group, (C/g, g, g), of x̃ or of its 2×2 max pool."""
    positions = base[:, 0].numel()
    if max_pool:
        base = F.max_pool2d(base, 2)
        eps = eps * positions / base[:, 0].numel()
    return newton_schulz(covariance(base, group_size, eps), iterations)


def covariance(base: Tensor, group_size: int, eps: float) -> Tensor:
    """Σ of every group over all samples and positions, plus ε I (eq. 20), (C/g, g, g)."""
    rows = base.transpose(0, 1).reshape(-1, group_size, base[:, 0].numel())
    centred = rows - rows.mean(dim=2, keepdim=True)
    identity = torch.eye(group_size, dtype=base.dtype, device=base.device)
    return centred @ centred.mT / rows.shape[2] + eps * identity


def newton_schulz(sigma: Tensor, iterations: int) -> Tensor:
    """P_T of ``P_0 = I, P_k = (3 P_(k-1) - P_(k-1)³ Σ) / 2`` with the trace of Σ divided out, (C/g, g, g).

    The recursion above eq. 22, with the Σ that is missing in it.
    """
    sigma = sigma / sigma.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    root = torch.eye(sigma.shape[1], dtype=sigma.dtype, device=sigma.device).expand_as(sigma)
    for _ in range(iterations):
        root = (3 * root - root @ root @ root @ sigma) / 2
    return root


def instance_variance(base: Tensor, correction: int) -> Tensor:
    """The variance of each sample and channel over its positions (eqs. 17 and 19), (N, C)."""
    positions = base.shape[2] * base.shape[3]
    centred = base - base.mean(dim=(2, 3), keepdim=True)
    return centred.square().sum(dim=(2, 3)) / max(positions - correction, 1)


def switchable_norm(
    x: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    running: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Switchable norm, the one base norm that PyTorch lacks (Luo et al., ICLR 2019, eq. 3).

    Args:
        x: (N, C, H, W).
        mean_weight, var_weight: (3,), logits in the order IN, LN, BN.
        weight, bias: γ and β, (C,).
        eps: added to the variance.
        running: mean and variance of BN's part in inference, (C,).
    """
    mean = variance = x.new_zeros(())
    for k, dims in enumerate([(2, 3), (1, 2, 3), (0, 2, 3)]):
        var_k, mean_k = torch.var_mean(x, dims, correction=0, keepdim=True)
        if running and dims == (0, 2, 3):
            mean_k, var_k = (value[:, None, None] for value in running)
        mean = mean + torch.softmax(mean_weight, 0)[k] * mean_k
        variance = variance + torch.softmax(var_weight, 0)[k] * var_k
    return weight[:, None, None] * (x - mean) / (variance + eps).sqrt() + bias[:, None, None]
