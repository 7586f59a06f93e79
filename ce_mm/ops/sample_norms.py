"""a_n and b_n of the base norms that differ between samples: group, instance, layer and switchable norm.

A base norm is affine in z = x - shift: ``x̃ = a_n ⊙ z + b_n``. For these norms a and b have the shape (N, C), and all of
it follows from the mean and variance of z in every sample and channel. Where a norm mixes channels or samples, the
shift k has to come back, for each has its own: μ_nc = m_nc + k_nc. What is left of it are differences.

Plain functions of small tensors, differentiated by autograd.
"""
import torch
from torch import Tensor


def group_norm_affine(
    instance: Tensor, shift: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Group norm of z as ``a_n z + b_n``; with groups = C it is instance norm, with 1 layer norm over C, H, W.

    ``a_n = γ (σ²_n + ε)^(-1/2)``, ``b_n = β - a_n (μ_n - k)``, with mean and variance of :func:`group_statistics`.

    Args:
        instance: (2, N, C), m_n and v_n.
        shift: k, (C,) or (N, C).
        groups: a divisor of C.
        weight, bias: γ and β, (C,), or None for 1 and 0.
        eps: ε.

    Returns:
        a_n and b_n, both (N, C).
    """
    return _affine(*group_statistics(instance, shift, groups), weight, bias, eps)


def switchable_norm_affine(
    instance: Tensor,
    shift: Tensor,
    batch_mean: Tensor,
    batch_variance: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Switchable norm of z as ``a_n z + b_n`` (Luo et al., Differentiable Learning-to-Normalize, ICLR 2019, eq. 3).

    ``a_n = γ (σ² + ε)^(-1/2)``, ``b_n = β - a_n μ``; ``μ = Σ_k w_k μ_k`` and ``σ² = Σ_k w'_k σ²_k`` over IN, LN and BN.

    Args:
        instance: (2, N, C), m_n and v_n.
        shift: k, (C,) or (N, C).
        batch_mean: BN's, of z, (C,) or (N, C) as k: over the batch, or the running one.
        batch_variance: BN's, (C,).
        mean_weight, var_weight: (3,), the logits of w and w', whose softmax is taken; in the order IN, LN, BN.
        weight, bias: γ and β, (C,), or None for 1 and 0.
        eps: ε.

    Returns:
        a_n and b_n, both (N, C).
    """
    of_mean, of_variance = mean_weight.softmax(0), var_weight.softmax(0)
    each, layer = instance_statistics(instance), group_statistics(instance, shift, 1)
    mean, variance = (
        w[0] * of_instance + w[1] * of_layer + w[2] * of_batch
        for w, of_instance, of_layer, of_batch in zip(
            (of_mean, of_variance), each, layer, (batch_mean, batch_variance), strict=True
        )
    )
    return _affine(mean, variance, weight, bias, eps)


def instance_statistics(instance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of z inside each sample and channel, ``m_n`` and ``v_n``, both (N, C).

    The variance of a single position, or of a constant map, is 0.

    Args:
        instance: (2, N, C), m_n and v_n.
    """
    mean, variance = instance
    # A shift may lie far from a sample: rounding could leave less than nothing of a constant one.
    return mean, variance.clamp(min=0)


def group_statistics(instance: Tensor, shift: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean of z + k less k, and variance of z + k, over the positions and channels of each sample and group.

    ``μ = mean_c(m_c + k_c)`` and ``σ² = mean_c(σ²_c) + mean_c((m_c + k_c - μ)²)``: squares of large means never meet.

    Args:
        instance: (2, N, C), m_n and v_n.
        shift: k, (C,) or (N, C).
        groups: a divisor of C.

    Returns:
        ``μ - k_c``, (N, C), and σ², (N, C), the same for all channels of a group.
    """
    mean, variance = instance_statistics(instance)
    n, c = mean.shape
    m, k = mean.view(n, groups, c // groups), shift.view(-1, groups, c // groups)
    k = k - k[..., :1]  # of like numbers this is exact, and their mean would not be
    away = m - m.mean(-1, keepdim=True) + (k - k.mean(-1, keepdim=True))
    variance = (variance.view_as(m) + away.square()).mean(-1, keepdim=True)
    return mean - away.reshape(n, c), variance.expand_as(m).reshape(n, c)


def statistics_over_samples(instance: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of z + k over the whole batch less k, and the variance of z + k, where each sample has its own k.

    ``μ = mean_n(m_n + k_n)`` and ``σ² = mean_n(σ²_n) + mean_n((m_n + k_n - μ)²)``, as :func:`group_statistics`.

    Args:
        instance: (2, N, C), m_n and v_n, N at least 1.
        shift: k, (C,) or (N, C).

    Returns:
        ``μ - k_n``, (N, C), and σ², (C,).
    """
    mean, variance = instance_statistics(instance)
    k = shift.view(-1, mean.shape[1])
    k = k - k[:1]
    away = mean - mean.mean(0) + (k - k.mean(0))
    return mean - away, (variance + away.square()).mean(0)


def _affine(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    return scale, -scale * mean if bias is None else torch.addcmul(bias, scale, mean, value=-1)
