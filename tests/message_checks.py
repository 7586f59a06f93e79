"""What single processes of the tests of communication run: here, where a spawned process can import it."""
import torch
import torch.distributed as dist
from torch import nn

from ce_mm.layers import CENorm
from tools.evidence.scaling.messages import process_group
from tools.evidence.scaling.sync_batch_norm_on_cpu import sync_batch_norm_on_cpu

CHANNELS, GROUP = 8, 4


def network(kind):
    """A convolution with 3·8 + 8 weights, and a norm."""
    norms = {
        "BN": lambda: nn.BatchNorm2d(CHANNELS),
        "SyncBN": lambda: nn.SyncBatchNorm(CHANNELS),
        "CE": lambda: CENorm(CHANNELS, group_size=GROUP),
        "CE on SyncBN": lambda: CENorm(CHANNELS, norm=dict(type="SyncBN"), group_size=GROUP),
        "SyncCE": lambda: CENorm(CHANNELS, group_size=GROUP, sync=True),
    }
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 1), norms[kind]())


class OneWeight(nn.Module):
    """Does ``between`` in every forward pass."""

    def __init__(self, between):
        super().__init__()
        self.weight, self.between = nn.Parameter(torch.ones(1)), between

    def forward(self, x):
        self.between()
        return self.weight * x.mean()


def wayward():
    """The first process makes a call that the second does not."""
    alone = dist.new_group([0])
    return OneWeight(lambda: dist.all_reduce(torch.zeros(2), group=alone) if dist.get_rank() == 0 else None)


def uncountable():
    """A call that nobody knows how to count."""
    return OneWeight(dist.barrier)


def sync_batch_norm_equals_the_joined_batch(rank, samples, folder):
    """Outputs, gradients and buffers, of PyTorch's two norms."""
    with process_group(rank, len(samples), folder):
        generator = torch.Generator().manual_seed(1)
        x, dy = (torch.randn(sum(samples), CHANNELS, 4, 3, dtype=torch.float64, generator=generator) for _ in range(2))
        joined, norm = nn.BatchNorm2d(CHANNELS).double(), nn.SyncBatchNorm(CHANNELS).double()
        for each in (joined, norm):
            each.weight.data = torch.linspace(0.5, 2, CHANNELS, dtype=torch.float64)
            each.bias.data = torch.linspace(-1, 1, CHANNELS, dtype=torch.float64)
        mine = slice(sum(samples[:rank]), sum(samples[: rank + 1]))
        part = x[mine].clone().requires_grad_()
        x.requires_grad_()
        expected = joined(x)
        expected.backward(dy)
        with sync_batch_norm_on_cpu():
            y = norm(part)
            y.backward(dy[mine])
        torch.testing.assert_close(y, expected[mine])
        torch.testing.assert_close(part.grad, x.grad[mine])
        for ours, theirs in zip(norm.buffers(), joined.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs)
        for ours, theirs in zip(norm.parameters(), joined.parameters(), strict=True):
            dist.all_reduce(ours.grad)
            torch.testing.assert_close(ours.grad, theirs.grad)
