"""What single processes of a distributed test run: here, where a spawned process can import it."""
import copy

import torch
import torch.distributed as dist
from oracle import equilibrium
from torch import nn

from ce_mm.layers import CENorm

CHANNELS = 8


def parameters(ce):
    return dict(
        mix_logit=ce.mix, fc1=ce.ir.fc1.weight, ln_weight=ce.ir.ln.weight, ln_bias=ce.ir.ln.bias, fc2=ce.ir.fc2.weight
    )


def layer():
    torch.manual_seed(0)
    ce = CENorm(CHANNELS, norm=dict(type="SyncBN"), group_size=4, reduction=2).double()
    for p in ce.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return ce


def sync_bn_equals_the_joined_batch(rank, samples, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(samples))
    generator = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(sum(samples), CHANNELS, 4, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    ce = layer()
    mine = slice(sum(samples[:rank]), sum(samples[: rank + 1]))
    x_mine = x[mine].clone().requires_grad_()
    y = ce(x_mine)
    y.backward(dy[mine])

    twin = layer()
    norm = nn.BatchNorm2d(CHANNELS).double()
    norm.weight, norm.bias = copy.deepcopy(twin.norm.weight), copy.deepcopy(twin.norm.bias)
    x.requires_grad_()
    parts = [p for p in norm(x).split(samples) if len(p)]
    expected = torch.cat([equilibrium(part, parameters(twin), group_size=4)[0] for part in parts])
    expected.backward(dy)
    torch.testing.assert_close(y, expected[mine])
    torch.testing.assert_close(x_mine.grad, x.grad[mine])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(ce.norm, name), getattr(norm, name))
    for ours, theirs in ((ce.norm.weight, norm.weight), (ce.mix, twin.mix), (ce.ir.fc1.weight, twin.ir.fc1.weight)):
        total = ours.grad.clone()
        dist.all_reduce(total)
        torch.testing.assert_close(total, theirs.grad)
    dist.destroy_process_group()
