"""Channel Equilibrium written down a second time, literally from the paper, as the truth the package is held against;
and switchable norm, the one base norm that PyTorch lacks.

Nothing is shared with ce_mm and nothing is clever: the normalised map is materialised, the covariance is formed from it
position by position, and PyTorch differentiates all of it. Equation numbers are those of arXiv 2003.00214, unless
another paper is named.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def switchable_norm(x: Tensor, mean_weight: Tensor, var_weight: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5,
                    running: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Switchable norm of x (Luo et al., ICLR 2019, eq. 3); with ``running``, inference with that mean and variance."""
    mean, variance = 0, 0
    for k, dims in enumerate([(2, 3), (1, 2, 3), (0, 2, 3)]):
        var_k, mean_k = torch.var_mean(x, dims, correction=0, keepdim=True)
        if running and dims == (0, 2, 3):
            mean_k, var_k = (value[:, None, None] for value in running)
        mean = mean + torch.softmax(mean_weight, 0)[k] * mean_k
        variance = variance + torch.softmax(var_weight, 0)[k] * var_k
    return weight[:, None, None] * (x - mean) / (variance + eps).sqrt() + bias[:, None, None]


@dataclass
class Statistics:
    """What the batch contributes to the moving averages."""

    whitening: Tensor | None = None      # (C/g, g, g)
    inv_std_scale: Tensor | None = None  # (1,)


def largest_fitting_group(channels: int, group_size: int) -> int:
    while channels % group_size:
        group_size //= 2
    return group_size


def whitening_matrix(base: Tensor, group_size: int, iterations: int, eps: float, max_pool: bool) -> Tensor:
    """Newton-Schulz inverse square root of the groups' trace-normalised covariance (eqs. 20 and 22)."""
    positions = base.shape[0] * base.shape[2] * base.shape[3]
    if max_pool:
        base = F.max_pool2d(base, 2)
        eps = eps * positions / (base.shape[0] * base.shape[2] * base.shape[3])
    result = []
    for group in base.split(group_size, dim=1):
        rows = group.permute(1, 0, 2, 3).reshape(group_size, -1)
        centred = rows - rows.mean(dim=1, keepdim=True)
        sigma = centred @ centred.T / rows.shape[1] + eps * torch.eye(group_size, dtype=rows.dtype)
        sigma = sigma / torch.trace(sigma)
        root = torch.eye(group_size, dtype=rows.dtype)
        for _ in range(iterations):
            root = (3 * root - root @ root @ root @ sigma) / 2
        result.append(root)
    return torch.stack(result)


def instance_variance(base: Tensor, correction: int) -> Tensor:
    """The variance of each sample and channel over its positions (eqs. 17 and 19)."""
    n, c, h, w = base.shape
    centred = base - base.mean(dim=(2, 3), keepdim=True)
    return centred.square().sum(dim=(2, 3)) / max(h * w - correction, 1)


def equilibrium(base: Tensor, params: dict[str, Tensor], *, branches=("bd", "ir"), group_size=16, iterations=3,
                max_pool=False, eps=1e-5, correction=0, running: Statistics | None = None) -> tuple[Tensor, Statistics]:
    """CE of the normalised map ``base`` (N, C, H, W); with ``running``, inference with those averages (eq. 32)."""
    n, c, h, w = base.shape
    group_size = largest_fitting_group(c, group_size)
    batch = Statistics()
    if "bd" in branches:
        batch.whitening = (running.whitening if running else
                           whitening_matrix(base, group_size, iterations, eps, max_pool))
        groups = base.reshape(n, c // group_size, group_size, h, w)
        decorrelated = torch.einsum("cij,ncjhw->ncihw", batch.whitening, groups).reshape(n, c, h, w)
    if "ir" in branches:
        variance = instance_variance(base, correction)
        hidden = F.layer_norm(variance @ params["fc1"].T, (params["fc1"].shape[0],), params["ln_weight"],
                              params["ln_bias"])
        gate = torch.sigmoid(F.relu(hidden) @ params["fc2"].T)
        batch.inv_std_scale = (running.inv_std_scale if running else
                               variance.mean().clamp(min=1e-5).rsqrt().reshape(1))
        reweighted = (gate * batch.inv_std_scale)[:, :, None, None] * base
    if branches == ("bd", "ir"):
        ratio = torch.sigmoid(params["mix_logit"])
        return ratio * decorrelated + (1 - ratio) * reweighted, batch
    return (decorrelated if "bd" in branches else reweighted), batch
