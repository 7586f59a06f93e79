"""Second step of a layer: from moments to the coefficients of the group affine, on small tensors and plain autograd.

Everything is written for a base norm that is affine in z = x - shift, ``x̃_n = a_n ⊙ z + b_n``, with a and b of shape
(N or 1, C). Neither x nor x̃ appears here; their statistics follow from the moments m_n and E_n of z.
"""
import torch
from torch import Tensor


def fit_group_size(channels: int, group_size: int) -> int:
    """The group size that divides ``channels``: ``group_size`` (at least 1), halved until it does."""
    while channels % group_size:
        group_size //= 2
    return group_size


def instance_variance(mean: Tensor, square: Tensor, positions: int, correction: int = 0) -> Tensor:
    """The variance of each sample and channel over its positions: diag E_n - m_n², with Bessel's correction if asked.

    Args:
        mean: (N, C), m_n.
        square: (N, C), diag E_n.
        positions: H·W.
        correction: 0, or 1 for the authors' unbiased estimate; the divisor is at least 1.

    Returns:
        (N, C).
    """
    return (square - mean.square()) * (positions / max(positions - correction, 1))


def batch_norm_affine(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Batch norm of z as ``a z + b``.

    Args:
        mean, variance: (C,), of z over the batch, or the running ones.
        weight, bias: γ and β, (C,), or None for 1 and 0.
        eps: added to the variance.

    Returns:
        a and b, both (1, C).
    """
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    offset = -scale * mean
    if bias is not None:
        offset = offset + bias
    return scale[None], offset[None]


def covariance(mean: Tensor, second: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """The covariance of x̃ over all positions of the batch, inside each group (paper eq. 20, without its ε).

    ``mean_n(a_n a_nᵀ ⊙ S_n + δ_n δ_nᵀ)`` with S_n = E_n - m_n m_nᵀ and δ_n the mean of x̃_n less the mean of x̃.

    Args:
        mean: (N, C), m_n.
        second: (N, C/g, g, g), E_n.
        scale, offset: a_n and b_n, (N or 1, C).

    Returns:
        (C/g, g, g).
    """
    n, groups, g, _ = second.shape
    m = mean.view(n, groups, g)
    a = scale.view(-1, groups, g)
    within = second - m[..., :, None] * m[..., None, :]
    centre = a * m + offset.view(-1, groups, g)
    delta = centre - centre.mean(dim=0)
    return (a[..., :, None] * a[..., None, :] * within + delta[..., :, None] * delta[..., None, :]).mean(dim=0)


def equilibrium_affine(
    scale: Tensor, offset: Tensor, whitening: Tensor | None, reweighting: Tensor | None, mix: Tensor | None
) -> tuple[Tensor, Tensor]:
    """W and t of the whole layer: A_n = λ Σ^(-1/2) + (1-λ) Diag(d_n), W_n = A_n Diag(a_n), t_n = A_n b_n.

    Args:
        scale, offset: a_n and b_n of the base norm, (N or 1, C).
        whitening: Σ^(-1/2), (C/g, g, g), or None where the layer has no batch decorrelation.
        reweighting: d_n, (N, C), or None where the layer has no instance reweighting.
        mix: the logit of λ, (1,); used where both branches are there, one branch alone is taken as it is.

    Returns:
        weight: (N or 1, C/g, g, g), with g = 1 where there is no whitening.
        bias: (N or 1, C).
    """
    if whitening is None:
        return (reweighting * scale)[..., None, None], reweighting * offset
    groups, g, _ = whitening.shape
    matrix = whitening[None]
    if reweighting is not None:
        ratio = torch.sigmoid(mix)
        matrix = ratio * matrix + torch.diag_embed((1 - ratio) * reweighting.view(-1, groups, g))
    weight = matrix * scale.view(-1, groups, 1, g)
    bias = (matrix @ offset.view(-1, groups, g, 1)).flatten(1)
    return weight, bias
