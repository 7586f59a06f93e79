"""PyTorch's SyncBatchNorm on a CPU, where it does not run by itself, so that its messages can be seen without a GPU.

Its autograd function runs as it is, with all its collectives. Only the five operators between them, which PyTorch has
for GPUs alone, are done here, and two checks of the device are left out, its own and DistributedDataParallel's.
"""
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as SyncBatchNormFunction
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def sync_batch_norm_on_cpu() -> Iterator[None]:
    """Inside the block, SyncBatchNorm in training takes maps (N, C, H, W) on the CPU, also under DDP made there.

    torch.distributed must run.
    """
    with (
        mock.patch.object(nn.SyncBatchNorm, "forward", _forward),
        mock.patch.object(DistributedDataParallel, "_passing_sync_batchnorm_handle"),
        _Operators(),
    ):
        yield


def _forward(norm: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    group = norm.process_group or dist.group.WORLD
    norm.num_batches_tracked.add_(1)
    return SyncBatchNormFunction.apply(
        x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, norm.momentum,
        group, dist.get_world_size(group),
    )  # fmt: skip


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(
        self, operator: Any, types: tuple, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _ON_CPU.get(operator, operator)(*args, **(kwargs or {}))


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + eps).rsqrt()


def _gather_stats(
    x: Tensor, means: Tensor, inv_stds: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    count = counts.sum()
    share = counts[:, None] / count
    mean = (share * means).sum(0)
    variance = (share * (inv_stds.pow(-2) - eps + (means - mean).square())).sum(0)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance * count / (count - 1), momentum)
    return mean, (variance + eps).rsqrt()


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inv_std: Tensor, eps: float) -> Tensor:
    return (x - _column(mean)) * _column(inv_std * weight) + _column(bias)


def _backward_sums(
    dy: Tensor, x: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, *_: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sum_dy, sum_dy_x = dy.sum((0, 2, 3)), (dy * (x - _column(mean))).sum((0, 2, 3))
    return sum_dy, sum_dy_x, sum_dy_x * inv_std, sum_dy


def _backward(
    dy: Tensor, x: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, sum_dy: Tensor, sum_dy_x: Tensor,
    counts: Tensor,
) -> Tensor:  # fmt: skip
    count = counts.sum()
    centred = (x - _column(mean)) * _column(inv_std.square() * sum_dy_x / count)
    return (dy - _column(sum_dy / count) - centred) * _column(inv_std * weight)


_aten = torch.ops.aten
_ON_CPU: dict[Any, Callable] = {
    _aten.batch_norm_stats.default: _stats,
    _aten.batch_norm_gather_stats_with_counts.default: _gather_stats,
    _aten.batch_norm_elemt.default: _normalise,
    _aten.batch_norm_backward_reduce.default: _backward_sums,
    _aten.batch_norm_backward_elemt.default: _backward,
}
