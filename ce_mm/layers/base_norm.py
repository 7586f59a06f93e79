"""The base norm under CE as an affine map of z = x - shift, ``x̃ = a z + b``: one strategy for each kind of norm.

The norm module keeps its own parameters and buffers; only its arithmetic is done here, from the moments that CE takes
anyway, so that the normalised map x̃ is never written to memory. A strategy holds nothing but the norm and is made anew
for every batch, since tools replace norms (BN by SyncBN, and back).
"""
from typing import NamedTuple

import torch
import torch.distributed as dist
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ce_mm import ops
from ce_mm.layers.arguments import expect, is_count, is_number
from ce_mm.layers.running_statistics import WholeBatch, running_averages, running_statistics
from ce_mm.layers.switchable_norm import SwitchableNorm


class Affine(NamedTuple):
    """What a base norm makes of a batch."""

    scale: Tensor  #: a, (1, C), or (N, C) where the strategy is ``per_sample``.
    offset: Tensor  #: b, of the same shape.
    mean: Tensor | None  #: of z over this process's batch, (C,), in training; None where ``per_sample``.
    averages: list[ops.Average]  #: for update_averages: what moves the norm's buffers.


def _is_sync_bn_of_mmcv(norm: nn.Module) -> bool:
    """Whether it is mmcv's SyncBN, known by its name: to import the class takes mmcv's operators."""
    return (type(norm).__module__, type(norm).__name__) == ("mmcv.ops.sync_bn", "SyncBatchNorm")


class BaseNorm:
    """What CE asks of a base norm.

    As it stands here: of one that has a scale and an offset for each sample, and neither buffers nor other processes.
    """

    #: Whether a and b differ between samples, so that moments are needed in inference too, and those of each sample.
    per_sample = True
    #: Whether a and b depend on statistics over the samples of the batch.
    mixes_samples = False
    #: Whether the norm by itself takes its statistics over several processes at this moment.
    synchronised = False
    #: Whether it is a batch norm that at this moment asks no other process for statistics.
    local_batch_norm = False

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The processes that share a batch: SyncBN's own group, or None for all."""
        return getattr(self.norm, "group" if _is_sync_bn_of_mmcv(self.norm) else "process_group", None)

    def common_shift(self, x: Tensor) -> Tensor | None:
        """A shift, (C,), that is the same on all processes where the norm is synchronised; None where it is not."""
        return None

    @property
    def guess(self) -> tuple[Tensor, Tensor] | None:
        """Mean and variance of x by the norm's buffers alone, both (C,); None without buffers."""
        return None

    def parameters(self, dtype: torch.dtype) -> list[Tensor | None]:
        """γ and β, each None where the norm has none."""
        return [None if p is None else p.to(dtype) for p in (self.norm.weight, self.norm.bias)]

    def affine(
        self,
        moments: ops.Moments | None,
        shift: Tensor,
        positions: int,
        training: bool,
        whole: WholeBatch | None = None,
    ) -> Affine:
        """The norm as an affine map of z = x - shift.

        Args:
            moments: of z; may be None in inference, unless ``per_sample``.
            shift: (C,).
            positions: H·W.
            training: whether to take the statistics of the batch.
            whole: those of all processes, in training, to take instead of this one's.
        """
        raise NotImplementedError

    def count(self, moved: Tensor) -> None:
        """Count a batch that moved the buffers; ``moved`` is a bool ()."""


class RunningBase(BaseNorm):
    """A norm with a running mean and variance."""

    @property
    def guess(self) -> tuple[Tensor, Tensor]:
        """The running ones."""
        return self.norm.running_mean, self.norm.running_var

    def count(self, moved: Tensor) -> None:
        """As PyTorch's batch norm."""
        self.norm.num_batches_tracked += moved


class BatchBase(RunningBase):
    """BN and SyncBN: one scale and offset for the whole batch, in inference from the buffers."""

    per_sample = False
    mixes_samples = True

    @property
    def synchronised(self) -> bool:
        """As SyncBN itself: in training, in a group of more than one process."""
        is_sync = isinstance(self.norm, nn.SyncBatchNorm) or _is_sync_bn_of_mmcv(self.norm)
        return is_sync and self.norm.training and ops.spans_processes(self.process_group)

    @property
    def local_batch_norm(self) -> bool:
        """Unless it is synchronised."""
        return not self.synchronised

    def common_shift(self, x: Tensor) -> Tensor | None:
        """The mean of the processes' own."""
        if not self.synchronised:
            return None
        shift, samples = ops.data_shift(x), x.shape[0]
        total = torch.cat([shift * samples, shift.new_full((1,), samples)])
        dist.all_reduce(total, group=self.process_group)
        return total[:-1] / total[-1].clamp(min=1)

    def affine(
        self,
        moments: ops.Moments | None,
        shift: Tensor,
        positions: int,
        training: bool,
        whole: WholeBatch | None = None,
    ) -> Affine:
        """Batch norm, with the batch that of all processes where it is synchronised."""
        norm, own_mean, averages = self.norm, None, []
        if not training:
            mean, variance = running_statistics(norm, shift)
        elif whole is not None:
            mean, variance = whole.about(shift)
            averages = running_averages(norm, whole.mean.to(shift.dtype), variance, whole.count)
        else:
            samples = moments.instance.shape[1]
            if self.synchronised:
                mean, variance, samples = self._statistics_of_all(moments.instance)
                own_mean = moments.instance[0].mean(0)
            else:
                mean, variance = ops.batch_statistics(moments.instance)
                own_mean = mean
            averages = running_averages(norm, mean + shift, variance, samples * positions)
        scale, offset = ops.batch_norm_affine(mean, variance, *self.parameters(shift.dtype), norm.eps)
        return Affine(scale, offset, own_mean, averages)

    def _statistics_of_all(self, instance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and (biased) variance of z over all processes, both (C,), and the number of samples behind them, ()."""
        mean, variance = instance
        totals = torch.cat([mean.sum(0), (variance + mean.square()).sum(0), mean.new_full((1,), mean.shape[0])])
        totals = ops.all_reduce_sum(totals, self.process_group)
        samples = totals[-1].clamp(min=1)
        mean, square = (totals[:-1] / samples).view(2, -1)
        return mean, torch.addcmul(square, mean, mean, value=-1), samples


class GroupBase(BaseNorm):
    """GN, and LN over C, H, W, which is GN with one group."""

    @property
    def groups(self) -> int:
        """How many groups the norm cuts the channels into."""
        return self.norm.num_groups

    def affine(
        self,
        moments: ops.Moments | None,
        shift: Tensor,
        positions: int,
        training: bool,
        whole: WholeBatch | None = None,
    ) -> Affine:
        """Group norm, the same in training and inference."""
        parameters = self.parameters(shift.dtype)
        affine = ops.group_norm_affine(moments.instance, shift, self.groups, *parameters, self.norm.eps)
        return Affine(*affine, None, [])


class InstanceBase(GroupBase):
    """IN, which is GN with a group for each channel; one position has the variance 0, and x̃ = β there."""

    @property
    def groups(self) -> int:
        """The number of channels."""
        return self.norm.num_features


class SwitchableBase(RunningBase):
    """SN."""

    mixes_samples = True

    def affine(
        self,
        moments: ops.Moments | None,
        shift: Tensor,
        positions: int,
        training: bool,
        whole: WholeBatch | None = None,
    ) -> Affine:
        """Switchable norm, its BN's part in inference from the buffers."""
        scale, offset, averages = self.norm.coefficients(moments, positions, training, whole)
        return Affine(scale, offset, None, averages)


STRATEGIES = {
    _BatchNorm: BatchBase,  # BN, and what mmengine's revert_sync_batchnorm makes of SyncBN
    nn.SyncBatchNorm: BatchBase,
    nn.GroupNorm: GroupBase,
    nn.InstanceNorm2d: InstanceBase,
    SwitchableNorm: SwitchableBase,
}


def base_norm(norm: nn.Module) -> BaseNorm:
    """A norm as CE computes with it: by its parameters and buffers, without calling it.

    Raises:
        TypeError: CE cannot: the norm is of another kind, or has a forward of its own.
    """
    strategy = _strategy(norm)
    if strategy is None:
        raise TypeError(_expected(norm))
    return strategy(norm)


def _strategy(norm: nn.Module) -> type[BaseNorm] | None:
    kinds = (kind for kind in STRATEGIES if isinstance(norm, kind) and type(norm).forward is kind.forward)
    strategy = BatchBase if _is_sync_bn_of_mmcv(norm) else STRATEGIES.get(next(kinds, None))
    # Of PyTorch's norms, BN without running statistics and IN with them are another norm in inference or in training.
    tracks = getattr(norm, "track_running_stats", None)
    takes_maps = not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm3d))
    return strategy if takes_maps and tracks is not (strategy is InstanceBase) else None


def build(norm: dict, num_features: int) -> nn.Module:
    """The base norm of a config.

    Args:
        norm: config for mmcv's ``build_norm_layer``; the type LN means layer norm over C, H, W here, GroupNorm(1, C).
        num_features: C.

    Raises:
        TypeError: it is no config of a norm that CE can stand on.
        ValueError: GN's groups do not divide the channels.
    """
    if not isinstance(norm, dict):
        raise TypeError(_expected(norm))
    config = norm | dict(type="GN", num_groups=1) if norm.get("type") == "LN" else norm
    if config.get("type") in ("GN", nn.GroupNorm):
        groups = config.get("num_groups")
        if not is_count(groups) or num_features % groups:
            raise ValueError(
                f"CENorm's norm {norm!r} must have a num_groups that divides the {num_features} channels, "
                f"got num_groups={groups!r}"
            )
    try:
        module = build_norm_layer(config, num_features)[1]
    except (KeyError, TypeError, RuntimeError) as error:  # no such type, or arguments that it does not take
        raise TypeError(f"{_expected(norm)} ({error})") from error
    if _strategy(module) is None:
        raise TypeError(_expected(norm))
    expect(is_number(module.eps, least=0), "eps of CENorm's norm", module.eps, "a number of at least 0")
    return module


def _expected(got: object) -> str:
    return (
        "CE's base norm must be BN or SyncBN with running statistics, GN, LN (over C, H, W), IN without running "
        f"statistics, or SN, got {got!r}; set for example norm=dict(type='BN')"
    )
