"""The inverse square root of a covariance by matrix products alone, batched over all groups of a layer."""
import torch
from torch import Tensor


def newton_schulz(sigma: Tensor, iterations: int) -> Tensor:
    """P_T of ``P_0 = I, P_k = (3 P_(k-1) - P_(k-1)³ Σ) / 2`` with Σ = sigma / tr(sigma) (paper eq. 22).

    The trace is not multiplied back afterwards: P_T approaches (sigma / tr(sigma))^(-1/2).

    Args:
        sigma: (..., g, g), symmetric positive definite.
        iterations: T, at least 1.

    Returns:
        (..., g, g), of sigma's type.
    """
    sigma = sigma / sigma.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    identity = torch.eye(sigma.shape[-1], dtype=sigma.dtype, device=sigma.device)
    root = 1.5 * identity - 0.5 * sigma  # the first step, from P_0 = I
    for _ in range(iterations - 1):
        root = 1.5 * root - 0.5 * (root @ root @ (root @ sigma))
    return root
