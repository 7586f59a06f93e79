"""CE with one thing changed, by the literal equations: what the channels' means are, or what Σ is.

On a batch norm every channel of x̄ has mean 0 over the batch. On GN and LN only a whole group has, in each sample.
"""
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ce_mm.layers import CENorm
from ce_mm.ops import reference

#: ``centred``: each channel's mean over the batch is taken out of x̄. ``products``: Σ is eq. 20 to the letter, the mean
#: products of γ x̄, where the layer has their covariance. ``diagonal``: Σ is the covariance's diagonal. These three on
#: GN or LN. ``uncentred``, on BN: x̄ is x over its channels' standard deviations, no mean taken out.
Change = Literal["centred", "products", "diagonal", "uncentred"]


class Altered(nn.Module):
    """A CENorm, computed literally, always by the statistics of the batch at hand.

    Args:
        ce: the layer, with both branches or none; its parameters are used as they are.
        change: what is not the layer's, or None for nothing.
    """

    def __init__(self, ce: CENorm, change: Change | None) -> None:
        super().__init__()
        self.ce = ce
        self.change = change

    def normalised(self, x: Tensor) -> Tensor:
        """x̃, (N, C, H, W)."""
        norm = self.ce.norm
        if self.change == "uncentred":
            x = x * (x.var((0, 2, 3), correction=0, keepdim=True) + norm.eps).rsqrt()
        else:
            x = F.group_norm(x, norm.num_groups, eps=norm.eps)
        if self.change == "centred":
            x = x - x.mean((0, 2, 3), keepdim=True)
        return x * norm.weight[:, None, None] + norm.bias[:, None, None]

    def forward(self, x: Tensor, rectifier: float | None = None) -> Tensor:
        """(N, C, H, W) to the same; any ``rectifier`` is taken for ReLU."""
        ce, y = self.ce, self.normalised(x)
        if ce.branches:
            y = self._equalised(y)
        return y if rectifier is None else y.relu()

    def _equalised(self, base: Tensor) -> Tensor:
        bd, ir, ratio = self.ce.bd, self.ce.ir, torch.sigmoid(self.ce.mix)
        rows = _rows(base, bd.group_size)
        decorrelated = torch.bmm(reference.newton_schulz(self.sigma(base), bd.iterations), rows)
        decorrelated = decorrelated.view(base.shape[1], base.shape[0], *base.shape[2:]).transpose(0, 1)
        variance = reference.instance_variance(base, ir.correction)
        gate = torch.sigmoid(ir.fc2(F.relu(ir.ln(ir.fc1(variance)))))
        weights = gate * variance.mean().clamp(min=1e-5).rsqrt()
        return ratio * decorrelated + (1 - ratio) * weights[:, :, None, None] * base

    def sigma(self, base: Tensor) -> Tensor:
        """Σ of x̃, (C/g, g, g), with ε."""
        size, eps = self.ce.bd.group_size, self.ce.bd.eps
        identity = torch.eye(size, dtype=base.dtype)
        if self.change == "products":
            rows = _rows(base - self.ce.norm.bias[:, None, None], size)
            return torch.bmm(rows, rows.mT) / rows.shape[2] + eps * identity
        sigma = reference.covariance(base, size, eps)
        return sigma * identity if self.change == "diagonal" else sigma


def _rows(x: Tensor, size: int) -> Tensor:
    """(N, C, H, W) as (C/size, size, N·H·W)."""
    return x.transpose(0, 1).reshape(-1, size, x[:, 0].numel())
