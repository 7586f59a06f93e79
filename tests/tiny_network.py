"""A network of two CE layers, small enough for several processes, and what is to be known of its training by hand."""
import copy

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from ce_mm.layers import CENorm


class TinyNetwork(BaseModel):
    """Takes batches as they are: a dict of x (N, 3, 6, 5) and of the weight (N, 8, 4, 3) of each output in the loss."""

    def __init__(self, norm=None):
        super().__init__(data_preprocessor=nn.Identity())
        self.data_preprocessor.forward = lambda data, training: data
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            CENorm(8, norm=norm, group_size=4, reduction=2),
            nn.Conv2d(8, 8, 1),
            CENorm(8, norm=dict(type="GN", num_groups=2), group_size=4, reduction=2),
        ).double()
        for p in self.parameters():
            p.data.add_(0.3 * torch.randn_like(p))

    def forward(self, x, weight, mode="loss"):
        return dict(loss=(self.body(x) * weight).sum())


def samples(count, seed) -> dict[str, Tensor]:
    """A batch."""
    generator = torch.Generator().manual_seed(seed)
    return dict(
        x=torch.randn(count, 3, 6, 5, dtype=torch.float64, generator=generator),
        weight=torch.randn(count, 8, 4, 3, dtype=torch.float64, generator=generator),
    )


def gradients(net, batch):
    """Of one batch alone; the network stays as it is."""
    copied = copy.deepcopy(net)
    return torch.autograd.grad(copied(**batch)["loss"], list(copied.parameters()))


def mean(rows):
    """Of several lists of tensors, place by place."""
    return [torch.stack(values).mean(0) for values in zip(*rows, strict=True)]


def buffers(net):
    """A copy."""
    return {name: value.clone() for name, value in net.named_buffers()}
