"""The base norm under CE as an affine map of z = x - shift: BN and SyncBN.

The norm module keeps its own parameters and buffers; only its arithmetic is done here, from the moments that CE takes
anyway, so that the normalised map x̃ is never written to memory.
"""
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ce_mm import ops

SUPPORTED = (nn.BatchNorm2d, nn.SyncBatchNorm)


def synchronised(norm: nn.Module) -> bool:
    """Whether the norm takes its statistics over several processes at this moment."""
    return (
        isinstance(norm, nn.SyncBatchNorm)
        and norm.training
        and dist.is_available()
        and dist.is_initialized()
        and dist.get_world_size(norm.process_group) > 1
    )


def common_shift(norm: nn.Module, x: Tensor) -> Tensor | None:
    """A shift, (C,), that is the same on all processes where the norm is synchronised; None where it is not."""
    if not synchronised(norm):
        return None
    shift, samples = ops.data_shift(x), x.shape[0]
    total = torch.cat([shift * samples, shift.new_full((1,), samples)])
    dist.all_reduce(total, group=norm.process_group)
    return total[:-1] / total[-1].clamp(min=1)


def running_shift(norm: nn.Module, x: Tensor) -> Tensor:
    """A shift for x, (C,), by the norm's buffers alone."""
    dtype = ops.compute_dtype(x.dtype)
    return ops.needed_shift(norm.running_mean.to(dtype), norm.running_var.to(dtype))


def batch_statistics(
    norm: nn.Module, moments: ops.Moments, positions: int
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Mean and (biased) variance of z over the norm's whole batch, and the number of values behind them.

    Args:
        norm: BN, or SyncBN whose batch is that of all processes.
        moments: of z.
        positions: H·W.

    Returns:
        mean (C,), variance (C,), count, where processes take part a tensor ().
    """
    samples = moments.means.shape[1]
    if not synchronised(norm):
        return *ops.batch_statistics(moments.means), samples * positions
    totals = torch.cat([moments.means.sum(1).flatten(), moments.means.new_full((1,), samples)])
    totals = ops.all_reduce_sum(totals, norm.process_group)
    samples = totals[-1].clamp(min=1)
    mean, square = (totals[:-1] / samples).view(2, -1)
    return mean, torch.addcmul(square, mean, mean, value=-1), samples * positions


def running_statistics(norm: nn.Module, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of z by the norm's buffers, both (C,), in the type of shift."""
    return norm.running_mean.to(shift.dtype) - shift, norm.running_var.to(shift.dtype)


def base_affine(norm: nn.Module, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The norm's a and b in x̃ = a z + b, both (1, C), for a mean and variance (C,) of z."""
    weight, bias = (None if p is None else p.to(mean.dtype) for p in (norm.weight, norm.bias))
    return ops.batch_norm_affine(mean, variance, weight, bias, norm.eps)


def base_averages(
    norm: nn.Module, mean: Tensor, variance: Tensor, count: int | Tensor
) -> list[tuple[Tensor, Tensor, float | Tensor]]:
    """What :func:`~ce_mm.layers.moving_average.update_averages` needs to move the norm's buffers as PyTorch would.

    Args:
        norm: the base norm.
        mean, variance: (C,), of x itself (not of z) over the batch, biased.
        count: the number of values behind them.
    """
    momentum = norm.momentum
    if momentum is None:  # the cumulative average
        momentum = (norm.num_batches_tracked + 1).to(mean.dtype).reciprocal()
    others = (count - 1).clamp(min=1) if isinstance(count, Tensor) else max(count - 1, 1)
    return [(norm.running_mean, mean, momentum), (norm.running_var, variance * (count / others), momentum)]
