"""Batch decorrelation (BD): one whitening matrix Σ^(-1/2) per group of channels, shared by the whole batch."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ce_mm import ops


class BatchDecorrelation(nn.Module):
    """Σ^(-1/2) of the normalised map, from its moments (paper eqs. 20 and 22).

    Args:
        num_features: C.
        group_size: g; halved until it divides C.
        iterations: T, the Newton-Schulz steps.
        max_pool: take Σ of the normalised map after a 2×2 max pool, the paper's saving for the stem. Maps smaller than
            2×2 are not pooled.
        eps: ε, added to Σ's diagonal (times M / M_pooled after a pool, as the authors do).

    Buffers:
        running_whitening: (C/g, g, g), the moving average of Σ^(-1/2), from I.
    """

    def __init__(
        self, num_features: int, group_size: int = 16, iterations: int = 3, max_pool: bool = False, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.group_size = ops.fit_group_size(num_features, group_size)
        self.iterations = iterations
        self.max_pool = max_pool
        self.eps = eps
        groups = num_features // self.group_size
        self.register_buffer("running_whitening", torch.eye(self.group_size).repeat(groups, 1, 1))

    def forward(
        self, x: Tensor, moments: ops.Moments, mean: Tensor | None, scale: Tensor, offset: Tensor
    ) -> Tensor:
        """Σ^(-1/2) of this batch.

        Args:
            x: (N, C, H, W), read again only for a max pool.
            moments: of z; where mean is None, with the products of each sample.
            mean: (C,), of z over this batch; None for a base norm that differs between samples.
            scale, offset: the base norm's a and b, (1, C) or, where mean is None, (N, C).

        Returns:
            (C/g, g, g).
        """
        eps = self.eps
        height, width = x.shape[2:]
        if self.pools(x):
            # The pool of a z + b is |a| times the pool of sign(a) z, plus b. The sign is that of γ, in every sample.
            sign = scale.detach().sign()
            pooled = F.max_pool2d(x * sign.to(x.dtype)[..., None, None], 2)
            moments = ops.moments(
                pooled, self.group_size, shift=moments.shift * sign[0], per_sample=mean is None
            )
            mean, scale = None if mean is None else moments.means[0].mean(0), scale.abs()
            eps = eps * (height * width) / (pooled.shape[2] * pooled.shape[3])
        if mean is None:
            sigma = ops.sample_covariance(moments.means[0], moments.second, scale, offset, eps)
        else:
            sigma = ops.covariance(mean, moments.second, scale, eps)
        return ops.newton_schulz(sigma, self.iterations)

    def pools(self, x: Tensor) -> bool:
        """Whether Σ is that of a pooled map, so that the products of x itself are not needed."""
        return self.max_pool and min(x.shape[2:]) >= 2

    def extra_repr(self) -> str:
        """What print(module) shows of the arguments."""
        return f"group_size={self.group_size}, iterations={self.iterations}, max_pool={self.max_pool}"
