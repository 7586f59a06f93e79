"""Batch decorrelation: Σ of every group of channels, from the moments, and its inverse square root.

``Σ = cov(x̃) + ε I`` with x̃ = a z + b, ``Σ^(-1/2)`` by matrix products alone, batched over all groups of a layer. Where
the backward is written by hand, few matrices have many nodes: at small maps autograd's way through them would cost more
than the maps.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ce_mm.ops.custom_op import once_in_full_precision
from ce_mm.ops.moments import moments
from ce_mm.ops.types import Moments


def fit_group_size(channels: int, group_size: int) -> int:
    """The group size that divides ``channels``: ``group_size`` (at least 1), halved until it does."""
    while channels % group_size:
        group_size //= 2
    return group_size


def whitening(
    seen: Moments, scale: Tensor, offset: Tensor, eps: float, iterations: int, mean: Tensor | None = None
) -> Tensor:
    """Σ^(-1/2) of a batch (paper eq. 20, and the recursion above eq. 22).

    Args:
        seen: the moments of z, with products; where the base norm differs between samples, of each of them.
        scale, offset: a and b of the base norm, (1, C), or (N, C) where it does.
        eps: ε.
        iterations: T.
        mean: that of z over the batch, (C,), where it is known already.

    Returns:
        (C/g, g, g), differentiable once.
    """
    assert seen.instance is not None and seen.second is not None
    means = seen.instance[0]
    if scale.shape[0] == 1:
        sigma = covariance(means.mean(0) if mean is None else mean, seen.second, scale, eps)
    else:
        sigma = sample_covariance(means, seen.second, scale, offset, eps)
    return newton_schulz(sigma, iterations)


def pooled_moments(x: Tensor, of_x: Moments, gamma: Tensor | None, group_size: int, per_sample: bool) -> Moments:
    """The moments of what becomes, by a and b of the base norm, the 2×2 max pool of x̃.

    The pool of a z + b is a times sign(a) pool(sign(a) z), plus b; the sign of a is that of γ, in every sample.

    Args:
        x: (N, C, H, W), neither side smaller than 2.
        of_x: its own moments, for their shift.
        gamma: γ, (C,), or None for 1.
        group_size, per_sample: as :func:`~ce_mm.ops.moments`'.
    """
    shift = of_x.shift
    sign = shift.new_ones(x.shape[1]) if gamma is None else torch.where(gamma.detach() < 0, -1, 1).to(shift.dtype)
    pooled = F.max_pool2d(x * sign.to(x.dtype)[:, None, None], 2)
    flipped = moments(pooled, group_size, shift=shift * sign, per_sample=per_sample)
    assert flipped.instance is not None and flipped.second is not None
    signs = sign.view(-1, group_size, 1)
    return flipped._replace(
        shift=shift,
        instance=torch.stack([flipped.instance[0] * sign, flipped.instance[1]]),
        second=flipped.second * (signs * signs.mT),
    )


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
    @once_in_full_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        m, a, of_z, outer = ctx.saved_tensors
        dsecond = grad * outer
        douter = grad * of_z
        da = torch.bmm(douter + douter.mT, a)
        dm = torch.bmm(dsecond + dsecond.mT, m).neg_()
        return dm.view(-1), dsecond[None], da.view(1, -1), None


def sample_covariance(mean: Tensor, second: Tensor, scale: Tensor, offset: Tensor, eps: float = 0.0) -> Tensor:
    """Σ, the covariance of x̃ = a_n z + b_n over all positions of the batch inside each group, plus ε I (paper eq. 20).

    ``mean_n(a_n a_nᵀ ⊙ S_n + δ_n δ_nᵀ) + ε I``: what varies inside the samples, S_n = E_n - m_n m_nᵀ, and what varies
    between them, δ_n = a_n m_n + b_n less its mean over n.

    Args:
        mean: m_n, (N, C), N at least 1.
        second: E_n, (N, C/g, g, g).
        scale, offset: a_n and b_n, (N, C).
        eps: ε.

    Returns:
        (C/g, g, g).
    """
    samples, groups, g, _ = second.shape
    centre = torch.addcmul(offset, scale, mean)
    away = (centre - centre.mean(0)).T.view(groups, g, samples)
    inside = variation_inside_samples(mean, second, scale)
    identity = torch.eye(g, dtype=second.dtype, device=second.device)
    return torch.baddbmm(inside, away, away.mT) / samples + eps * identity


def variation_inside_samples(mean: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    """``Σ_n a_n a_nᵀ ⊙ S_n`` with S_n = E_n - m_n m_nᵀ: what of x̃'s products is not due to where the samples lie.

    Args:
        mean, second, scale: as for :func:`sample_covariance`, but N may be 0.

    Returns:
        (C/g, g, g).
    """
    samples, groups, g, _ = second.shape
    m, a = mean.view(samples, groups, g, 1), scale.view(samples, groups, g, 1)
    return ((second - m * m.mT) * (a * a.mT)).sum(0)


def newton_schulz(sigma: Tensor, iterations: int) -> Tensor:
    """P_T of ``P_0 = I, P_k = (3 P_(k-1) - P_(k-1)³ Σ) / 2`` with Σ = sigma / tr(sigma): what the paper has above
    eq. 22, with the Σ that is missing there.

    The trace is not multiplied back afterwards: P_T approaches (sigma / tr(sigma))^(-1/2).

    Args:
        sigma: (G, g, g), symmetric positive definite.
        iterations: T, at least 1.

    Returns:
        (G, g, g), of sigma's type; differentiable once.
    """
    return _NewtonSchulz.apply(sigma, iterations)


class _NewtonSchulz(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sigma: Tensor, iterations: int) -> Tensor:
        trace = sigma.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        sigma = sigma / trace
        root = -0.5 * sigma  # the first step, from P_0 = I
        root.diagonal(dim1=-2, dim2=-1).add_(1.5)
        steps: list[Tensor] = []
        for _ in range(iterations - 1):
            square, product = torch.bmm(root, root), torch.bmm(root, sigma)
            steps += (root, square, product)
            root = torch.baddbmm(root, square, product, beta=1.5, alpha=-0.5)
        ctx.save_for_backward(trace, sigma, *steps)
        return root

    @staticmethod
    @once_in_full_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        trace, sigma, *steps = ctx.saved_tensors
        dsigma = torch.zeros_like(sigma)
        while steps:
            *steps, root, square, product = steps
            # Of P' = 1.5 P - 0.5 P² (P Σ); dsquare, dproduct and dsigma are -2 times the gradients.
            dsquare, dproduct = torch.bmm(grad, product.mT), torch.bmm(square.mT, grad)
            transposed = root.mT
            dsigma.baddbmm_(transposed, dproduct)
            grad = torch.baddbmm(grad, dsquare, transposed, beta=1.5, alpha=-0.5)
            grad.baddbmm_(transposed, dsquare, alpha=-0.5).baddbmm_(dproduct, sigma.mT, alpha=-0.5)
        # The first step is P_1 = 1.5 I - 0.5 Σ; like the others' it has yet to be divided by -2.
        dsigma += grad
        along = (dsigma * sigma).sum((-2, -1), keepdim=True)
        dsigma.diagonal(dim1=-2, dim2=-1).sub_(along[..., 0])
        return dsigma / (-2 * trace), None
