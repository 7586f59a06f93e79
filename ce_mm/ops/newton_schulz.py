"""The inverse square root of a covariance by matrix products alone, batched over all groups of a layer.

The backward is written by hand: the recursion has few matrices and many nodes, and at small maps autograd's way through
them would cost more than the maps.
"""
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def newton_schulz(sigma: Tensor, iterations: int) -> Tensor:
    """P_T of ``P_0 = I, P_k = (3 P_(k-1) - P_(k-1)³ Σ) / 2`` with Σ = sigma / tr(sigma) (paper eq. 22).

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
        steps = []
        for _ in range(iterations - 1):
            square, product = torch.bmm(root, root), torch.bmm(root, sigma)
            steps += (root, square, product)
            root = torch.baddbmm(root, square, product, beta=1.5, alpha=-0.5)
        ctx.save_for_backward(trace, sigma, *steps)
        return root

    @staticmethod
    @once_differentiable
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
