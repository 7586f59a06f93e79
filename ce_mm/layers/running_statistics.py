"""The running mean and variance of a batch norm, or of one inside a switchable norm: what they say of z = x - shift,
and what moves them.
"""
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ce_mm import ops


class WholeBatch(NamedTuple):
    """What all processes have together, of x itself, in float64."""

    mean: Tensor  #: (C,)
    variance: Tensor  #: (C,), biased
    count: Tensor  #: of the values of a channel, (), at least 1

    def about(self, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of z = x - shift, of the shape of shift and (C,), in its type."""
        return (self.mean - shift.double()).to(shift.dtype), self.variance.to(shift.dtype)


def running_shift(norm: nn.Module, dtype: torch.dtype) -> Tensor:
    """A shift, (C,), by the norm's buffers alone, for a map of this type."""
    work = ops.compute_dtype(dtype)
    return ops.needed_shift(norm.running_mean.to(work), norm.running_var.to(work))


def running_statistics(norm: nn.Module, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of z by the norm's buffers, both (C,), in the type of shift."""
    return norm.running_mean.to(shift.dtype) - shift, norm.running_var.to(shift.dtype)


def running_averages(
    norm: nn.Module, mean: Tensor, variance: Tensor, count: int | Tensor
) -> list[ops.Average]:
    """What :func:`~ce_mm.ops.update_averages` needs to move the buffers as PyTorch's BN would.

    Args:
        norm: the norm.
        mean, variance: (C,), of x itself (not of z) over the batch, biased.
        count: the number of values behind them, where processes take part a tensor ().
    """
    momentum = norm.momentum
    if momentum is None:  # the cumulative average
        momentum = (norm.num_batches_tracked + 1).to(mean.dtype).reciprocal()
    others = (count - 1).clamp(min=1) if isinstance(count, Tensor) else max(count - 1, 1)
    return [(norm.running_mean, mean, momentum), (norm.running_var, variance * (count / others), momentum)]
