"""The base norm as an affine map of z = x - shift, ``x̃ = a ⊙ z + b``: a and b of every kind of norm, from the moments.

The norm module keeps its own parameters and buffers; only its arithmetic is done here, so that the normalised map x̃ is
never written to memory. Of a batch norm a and b have the shape (1, C), of the others (N, C)
(:mod:`ce_mm.ops.sample_norms`).

The backward of what has many operations is written by hand: the tensors are so small that autograd's nodes would cost
more than the arithmetic, and at small maps more than the maps.
"""
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ce_mm.ops.all_reduce import all_reduce_sum
from ce_mm.ops.backends import choose, plain
from ce_mm.ops.custom_op import is_watched, once_in_full_precision
from ce_mm.ops.moments import batch_statistics
from ce_mm.ops.sample_norms import group_norm_affine, statistics_over_samples, switchable_norm_affine
from ce_mm.ops.types import Average, Moments, NormModule, Statistics


class BaseNorm:
    """What the chain of coefficients asks of a base norm, for one batch.

    As it stands here: of one that has a scale and an offset for each sample, and no averages.

    Args:
        norm: the module, of which its parameters, buffers and numbers are read.
    """

    #: Whether a and b differ between samples, so that moments are needed in inference too, and those of each sample.
    per_sample = True
    #: Whether the norm's statistics are means over the samples of the batch, so that it has averages of them.
    mixes_samples = False
    #: Whether it takes them over several processes by itself.
    synchronised = False
    #: Whether it is a batch norm over this process's batch, for which backends may have a chain of their own.
    local_batch_norm = False

    def __init__(self, norm: NormModule) -> None:
        self.norm = norm

    @property
    def guess(self) -> tuple[Tensor, Tensor] | None:
        """Mean and variance of x by the norm's buffers alone, both (C,); None without buffers."""
        return (self.norm.running_mean, self.norm.running_var) if self.mixes_samples else None

    def parameters(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """γ and β, (C,), in a type; each None where the norm has none."""
        weight, bias = self.norm.weight, self.norm.bias
        return None if weight is None else weight.to(dtype), None if bias is None else bias.to(dtype)

    def statistics(self, moments: Moments) -> tuple[Tensor | None, Tensor | None, int | Tensor]:
        """Of the batch that ``affine`` needs: mean and variance of z, and how many values of a channel they are of."""
        return None, None, 0

    def affine(self, moments: Moments, mean: Tensor | None, variance: Tensor | None) -> tuple[Tensor, Tensor]:
        """a and b, both (N, C), or (1, C) where they are the same for all samples.

        Args:
            moments: of z.
            mean, variance: of the batch as ``statistics`` gives them, or of the buffers.
        """
        raise NotImplementedError

    def running(self, shift: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Mean and variance of z by the norm's buffers, the mean of the shape of shift."""
        if not self.mixes_samples:
            return None, None
        return self.norm.running_mean.to(shift.dtype) - shift, self.norm.running_var.to(shift.dtype)

    def averages(self, found: Statistics, shift: Tensor) -> list[Average]:
        """What moves the buffers as PyTorch's norms would.

        Args:
            found: of the batch.
            shift: that it is about.
        """
        if not self.mixes_samples:
            return []
        norm, momentum, values = self.norm, self.norm.momentum, found.values
        assert found.mean is not None and found.variance is not None  # as in every batch of such a norm
        mean = found.mean + shift if found.mean_of_x is None else found.mean_of_x
        mean = mean if mean.dim() == 1 else mean[0]  # in every sample the same, about a shift of its own
        if momentum is None:  # the cumulative average
            momentum = (norm.num_batches_tracked + 1).to(mean.dtype).reciprocal()
        others = (values - 1).clamp(min=1) if isinstance(values, Tensor) else max(values - 1, 1)
        corrected = found.variance * (values / others)
        return [Average(norm.running_mean, mean, momentum), Average(norm.running_var, corrected, momentum)]

    def learn(self, found: Statistics, shift: Tensor, further: Sequence[Average] = ()) -> Tensor:
        """Move the norm's :meth:`averages` by a batch, and further ones too: all, or none if a value is not finite.

        Returns:
            Whether all values were finite, a bool () on the device.
        """
        with torch.no_grad():
            averages = [*self.averages(found, shift), *further]
            present = found.values > 0 if isinstance(found.values, Tensor) else None
            value = averages[0].value
            backend = plain if is_watched((value,)) else choose(value.device, value.dtype, 1)
            finite, moved = backend.move_averages(averages, present)
            if self.mixes_samples:
                self.norm.num_batches_tracked += moved
        return finite


class BatchNorm(BaseNorm):
    """BN: one scale and offset for the whole batch."""

    per_sample, mixes_samples, local_batch_norm = False, True, True

    def statistics(self, moments: Moments) -> tuple[Tensor, Tensor, int | Tensor]:
        """Of this process's batch."""
        assert moments.instance is not None
        return *batch_statistics(moments.instance), moments.instance.shape[1] * moments.positions

    def affine(self, moments: Moments, mean: Tensor | None, variance: Tensor | None) -> tuple[Tensor, Tensor]:
        """As PyTorch's."""
        assert mean is not None and variance is not None
        return batch_norm_affine(mean, variance, *self.parameters(mean.dtype), self.norm.eps)


class SyncBatchNorm(BatchNorm):
    """SyncBN in training, where several processes share a batch."""

    synchronised, local_batch_norm = True, False

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """Which; None for all."""
        raise NotImplementedError

    def statistics(self, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
        """Of the batch of all processes."""
        assert moments.instance is not None
        mean, variance = moments.instance
        totals = torch.cat([mean.sum(0), (variance + mean.square()).sum(0), mean.new_full((1,), mean.shape[0])])
        totals = all_reduce_sum(totals, self.process_group)
        mean, square = (totals[:-1] / totals[-1].clamp(min=1)).view(2, -1)
        return mean, torch.addcmul(square, mean, mean, value=-1), totals[-1].detach() * moments.positions


class GroupNorm(BaseNorm):
    """GN, and LN over C, H, W, which is GN with one group; the same in training and inference."""

    @property
    def groups(self) -> int:
        """How many groups the norm cuts the channels into."""
        return self.norm.num_groups

    def affine(self, moments: Moments, mean: Tensor | None, variance: Tensor | None) -> tuple[Tensor, Tensor]:
        """As PyTorch's, for which the moments are enough."""
        assert moments.instance is not None
        shift = moments.shift
        return group_norm_affine(moments.instance, shift, self.groups, *self.parameters(shift.dtype), self.norm.eps)


class InstanceNorm(GroupNorm):
    """IN, which is GN with a group for each channel; one position has the variance 0, and x̃ = β there."""

    @property
    def groups(self) -> int:
        """The number of channels."""
        return self.norm.num_features


class SwitchableNorm(BaseNorm):
    """SN: IN, LN and BN mixed; BN's part is that of the batch, or of the buffers."""

    mixes_samples = True

    def statistics(self, moments: Moments) -> tuple[Tensor, Tensor, int]:
        """BN's part, the mean of shape (N, C): each sample has its own shift."""
        assert moments.instance is not None
        return *statistics_over_samples(moments.instance, moments.shift), moments.instance.shape[1] * moments.positions

    def affine(self, moments: Moments, mean: Tensor | None, variance: Tensor | None) -> tuple[Tensor, Tensor]:
        """The softmax of the norm's ``mean_weight`` and ``var_weight`` says how the three are mixed."""
        assert moments.instance is not None and mean is not None and variance is not None
        norm, shift = self.norm, moments.shift
        mixing = norm.mean_weight.to(shift.dtype), norm.var_weight.to(shift.dtype)
        parameters = self.parameters(shift.dtype)
        return switchable_norm_affine(moments.instance, shift, mean, variance, *mixing, *parameters, norm.eps)


def batch_norm_affine(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Batch norm of z as ``a z + b``.

    Args:
        mean, variance: (C,), of z over the batch, or the running ones.
        weight, bias: γ and β, (C,), or None for 1 and 0.
        eps: added to the variance.

    Returns:
        a and b, both (1, C), differentiable once.
    """
    return _BatchNormAffine.apply(mean, variance, weight, bias, eps)


class _BatchNormAffine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        inv_std = (variance + eps).rsqrt_()
        scale = inv_std.clone() if weight is None else inv_std * weight
        offset = -scale * mean if bias is None else torch.addcmul(bias, scale, mean, value=-1)
        ctx.save_for_backward(mean, inv_std, scale)
        return scale[None], offset[None]

    @staticmethod
    @once_in_full_precision
    def backward(ctx: Any, dscale: Tensor, doffset: Tensor) -> tuple[Tensor | None, ...]:
        mean, inv_std, scale = ctx.saved_tensors
        dscale, doffset = dscale[0], doffset[0]
        dscale = torch.addcmul(dscale, doffset, mean, value=-1)
        dweight = dscale * inv_std
        dvariance = (dweight * scale).mul_(inv_std).mul_(-0.5)
        needed = ctx.needs_input_grad
        return -doffset * scale, dvariance, dweight if needed[2] else None, doffset if needed[3] else None, None
