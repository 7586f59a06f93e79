"""A sum over the processes of a group that gradients flow through: its backward is the same sum of the gradients."""
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduceSum.apply(grad, ctx.group), None


def all_reduce_sum(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of ``value`` over the processes of ``group`` (None: all), for every process the same."""
    return _AllReduceSum.apply(value, group)
