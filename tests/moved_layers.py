"""Layers as a training leaves them."""
import torch
from torch import nn

from ce_mm.layers import CENorm


def moved(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode, the parameters and buffers of its CENorms away from their starting values."""
    generator = torch.Generator().manual_seed(seed)

    def normal(value):
        return torch.randn(value.shape, generator=generator)

    for ce in (module for module in model.modules() if isinstance(module, CENorm)):
        with torch.no_grad():
            for p in ce.parameters():
                p.add_(0.3 * normal(p))
            if getattr(ce.norm, "running_mean", None) is not None:
                ce.norm.running_mean.copy_(normal(ce.norm.running_mean))
                ce.norm.running_var.mul_(normal(ce.norm.running_var).exp())
            if ce.bd is not None:
                ce.bd.running_whitening.add_(0.1 * normal(ce.bd.running_whitening))
            if ce.ir is not None:
                ce.ir.running_inv_std_scale.fill_(0.7)
    model.eval()
    return model


def batch(n: int = 3, channels: int = 16, h: int = 6, w: int = 5, seed: int = 1) -> torch.Tensor:
    """The same map every time."""
    return torch.randn(n, channels, h, w, generator=torch.Generator().manual_seed(seed))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error as a share of the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()
