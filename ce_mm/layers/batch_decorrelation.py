"""Batch decorrelation (BD): one whitening matrix Σ^(-1/2) per group of channels, shared by the whole batch."""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ce_mm import ops


class Seen(NamedTuple):
    """The map that Σ is taken of: the layer's own, or what a max pool leaves of it."""

    moments: ops.Moments  #: of what becomes x̃, or its pool, by the base norm's a and b
    positions: int  #: H·W


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
        seen = self.seen(x, moments, scale, per_sample=mean is None)
        eps = self.eps * (x.shape[2] * x.shape[3] / seen.positions)
        if mean is None:
            sigma = ops.sample_covariance(seen.moments.instance[0], seen.moments.second, scale, offset, eps)
        else:
            mean = mean if seen.moments is moments else seen.moments.instance[0].mean(0)
            sigma = ops.covariance(mean, seen.moments.second, scale, eps)
        return ops.newton_schulz(sigma, self.iterations)

    def seen(self, x: Tensor, moments: ops.Moments, scale: Tensor, per_sample: bool) -> Seen:
        """What Σ is taken of.

        Args:
            x, moments, scale: as in :meth:`forward`.
            per_sample: whether to keep the products of each sample.
        """
        if not self.pools(x):
            return Seen(moments, x.shape[2] * x.shape[3])
        # The pool of a z + b is a times sign(a) pool(sign(a) z), plus b. The sign is that of γ, in every sample.
        sign = torch.where(scale.detach()[0] < 0, -1, 1).to(scale.dtype)
        pooled = F.max_pool2d(x * sign.to(x.dtype)[:, None, None], 2)
        flipped = ops.moments(pooled, self.group_size, shift=moments.shift * sign, per_sample=per_sample)
        instance = torch.stack([flipped.instance[0] * sign, flipped.instance[1]])
        signs = sign.view(-1, self.group_size, 1)
        second = flipped.second * (signs * signs.mT)
        return Seen(ops.Moments(moments.shift, instance, second, flipped.link), pooled.shape[2] * pooled.shape[3])

    def is_at_start(self) -> bool:
        """Whether no batch has moved the average; asks the device."""
        start = torch.eye(self.group_size, dtype=self.running_whitening.dtype, device=self.running_whitening.device)
        return torch.equal(self.running_whitening, start.expand_as(self.running_whitening))

    def pools(self, x: Tensor) -> bool:
        """Whether Σ is that of a pooled map, so that the products of x itself are not needed."""
        return self.max_pool and x.shape[0] > 0 and min(x.shape[2:]) >= 2

    def extra_repr(self) -> str:
        """What print(module) shows of the arguments."""
        return f"group_size={self.group_size}, iterations={self.iterations}, max_pool={self.max_pool}"
