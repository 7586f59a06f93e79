"""What batch decorrelation does to the scale of the channels (paper, Proposition 1 and eqs. 20 to 24).

Σ = γγᵀ ⊙ ρ / tr has unit trace, so its eigenvalues lie in (0, 1), and P_T, the Newton-Schulz root after T steps, lies
between I and Σ^(-1/2). Hence P_T lengthens every vector and raises the standard deviation of every channel, for every
T; γ̂ = P_T γ, the paper's equivalent of γ, is sure to grow in every channel for T = 1 alone.
"""
import numpy as np
import torch

from ce_mm.ops import newton_schulz
from tools.evidence.theory.batch_and_instance import normalised_covariance


def unit_trace_covariance(gamma: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """Σ of one group, as BD has it for ε = 0.

    Args:
        gamma: (g,), not all 0.
        rho: (g, g), the covariance of x̄ (behind BN and IN a correlation matrix), or several at once (..., g, g) with
            gamma (..., g).

    Returns:
        of rho's shape.
    """
    sigma = gamma[..., :, None] * gamma[..., None, :] * rho
    return sigma / np.trace(sigma, axis1=-2, axis2=-1)[..., None, None]


def whitening(sigma: np.ndarray, iterations: int) -> np.ndarray:
    """P_T by the operator that the layers use.

    Args:
        sigma: (..., g, g).
        iterations: T, at least 1.

    Returns:
        of sigma's shape.
    """
    groups = torch.from_numpy(sigma.reshape(-1, *sigma.shape[-2:]))
    return newton_schulz(groups, iterations).numpy().reshape(sigma.shape)


def inverse_root(sigma: np.ndarray) -> np.ndarray:
    """Σ^(-1/2) itself, which P_T approaches, from the eigenvalues; shapes as for `whitening`."""
    values, vectors = np.linalg.eigh(sigma)
    return vectors / np.sqrt(values)[..., None, :] @ np.swapaxes(vectors, -1, -2)


def equivalent_gamma(gamma: np.ndarray, rho: np.ndarray, iterations: int) -> np.ndarray:
    """γ̂ = P_T γ; shapes as for `unit_trace_covariance`."""
    return (whitening(unit_trace_covariance(gamma, rho), iterations) @ gamma[..., None])[..., 0]


def one_step_gamma(gamma: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """γ̂ after one step, in closed form: γ̂_c = γ_c (3 - r_c) / 2 with r_c = Σ_d γ_d² ρ_cd / Σ_d γ_d² ρ_dd.

    For a correlation matrix r_c is at most 1; for the covariance of x̄ behind LN it may be more.
    """
    weights = gamma**2 / np.sum(gamma**2 * np.diag(rho))
    return gamma * (3 - rho @ weights) / 2


def channel_spreads(gamma: np.ndarray, rho: np.ndarray, iterations: int) -> np.ndarray:
    """The standard deviation of each channel behind BD; before it, that is |γ_c| √ρ_cc.

    Args:
        gamma: (g,), not all 0.
        rho: (g, g), the covariance of x̄.
        iterations: T, at least 1.

    Returns:
        (g,).
    """
    root = whitening(unit_trace_covariance(gamma, rho), iterations)
    return np.sqrt(np.diag(root @ normalised_covariance(gamma, rho) @ root))
