"""Batch statistics from instance statistics, and what the norm makes of both (paper, eqs. 17 to 20).

M positions of a batch are N samples of H·W positions each, so a batch variance is the mean of the instance variances
plus the variance of the instance means. Behind the norm, x̃ = γ (x - μ) / √(σ² + ε) + β, each instance variance is
scaled by γ² / (σ² + ε), whatever β, and the covariance of x̃ is γγᵀ ⊙ ρ with ρ = mean(x̄ x̄ᵀ).
"""
import numpy as np


def instance_statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (divisor H·W) of each sample and channel (eq. 17).

    Args:
        x: (N, C, H, W).

    Returns:
        two arrays (N, C).
    """
    return x.mean(axis=(2, 3)), x.var(axis=(2, 3))


def batch_from_instance(mean: np.ndarray, var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """BN's mean and variance (divisor M) from those of the instances (eq. 18).

    Args:
        mean: (N, C), of `instance_statistics`.
        var: (N, C), of `instance_statistics`.

    Returns:
        two arrays (C,).
    """
    return mean.mean(axis=0), var.mean(axis=0) + mean.var(axis=0)


def normalised_instance_variance(
    var: np.ndarray, batch_var: np.ndarray, gamma: np.ndarray, eps: float = 0.0
) -> np.ndarray:
    """σ̃², the variance of x̃ in each sample and channel, from that of x (eq. 19).

    Args:
        var: (N, C), the instance variances of x.
        batch_var: (C,), the variance that the norm divides by.
        gamma: (C,), the norm's scale.
        eps: the norm's ε.

    Returns:
        (N, C).
    """
    return gamma**2 * var / (batch_var + eps)


def correlation(x: np.ndarray, eps: float = 0.0) -> np.ndarray:
    """ρ, the mean of x̄ x̄ᵀ over the M positions of a batch.

    Args:
        x: (N, C, H, W); with ``eps`` 0, no channel may be constant.
        eps: the norm's ε.

    Returns:
        (C, C); its diagonal is 1 for ``eps`` 0, and σ² / (σ² + ε) otherwise.
    """
    rows = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    rows = rows / np.sqrt(np.mean(rows**2, axis=1, keepdims=True) + eps)
    return rows @ rows.T / rows.shape[1]


def normalised_covariance(gamma: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """The covariance of x̃ (eq. 20, without the εI and the unit trace of batch decorrelation).

    Args:
        gamma: (C,), the norm's scale.
        rho: (C, C), of `correlation`.

    Returns:
        (C, C).
    """
    return np.outer(gamma, gamma) * rho
