"""Sums over the processes of a group that gradients flow through: the backward is the same sum of the gradients."""
from collections.abc import Sequence
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


def all_reduce_sums(values: Sequence[Tensor], group: dist.ProcessGroup | None) -> list[Tensor]:
    """:func:`all_reduce_sum` of several tensors of one type and device, in one message."""
    total = all_reduce_sum(torch.cat([value.flatten() for value in values]), group)
    parts = total.split([value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]


def spans_processes(group: dist.ProcessGroup | None) -> bool:
    """Whether torch.distributed runs and the group (None: of all processes) has more than one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1
