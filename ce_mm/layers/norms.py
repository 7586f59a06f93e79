"""The kinds of norm that CE can stand on: one class a kind, which everybody asks.

A kind says its names in configs, the module that holds its parameters and buffers, its arithmetic
(:mod:`ce_mm.ops.base_norms`), and what is left of it in a folded network. An instance is a kind with one norm, and is
made anew for every batch, since tools replace norms (BN by SyncBN, and back). Another kind is a further class, given
to :func:`add_kind`.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ce_mm import ops
from ce_mm.layers.arguments import expect, is_count, is_number
from ce_mm.layers.folded_norms import (
    FoldedGroupNorm,
    FoldedMean,
    FoldedSampleNorm,
    FoldedSwitchableNorm,
    exact,
    parameters,
)
from ce_mm.layers.switchable_norm import SwitchableNorm
from ce_mm.ops import base_norms

#: All kinds; where several fit a module or have a name, the last.
KINDS: list[type[Kind]] = []
#: Those that are known by the exact class of a module and its ``track_running_stats``, without a search.
EXACT: dict[tuple[type[nn.Module], bool | None], type[Kind]] = {}


def add_kind(kind: type[Kind]) -> type[Kind]:
    """Let CE stand on a further kind of norm; a decorator of its class. It goes before those that were there."""
    if kind.fits(kind.module) and not kind.synchronised:
        EXACT[kind.module, kind.tracks] = kind
    KINDS.append(kind)
    return kind


def norm_names() -> list[str]:
    """The names of all kinds in configs."""
    return [name for kind in KINDS for name in kind.names]


class Kind(base_norms.BaseNorm):
    """What CE asks of a kind of norm beside its arithmetic."""

    #: Its names in configs, ``norm=dict(type='BN')``.
    names: tuple[str, ...] = ()
    #: The class of its modules.
    module: type[nn.Module]
    #: What a module's ``track_running_stats`` has to be; PyTorch's norms are others with the other value.
    tracks: bool | None = None

    @classmethod
    def fits(cls, module: type[nn.Module]) -> bool:
        """Whether modules of a class compute what this kind does: theirs are its parameters and its forward."""
        return issubclass(module, cls.module) and module.forward is cls.module.forward

    @classmethod
    def build(cls, module: type[nn.Module], num_features: int, **arguments: Any) -> nn.Module:
        """The module of a config: of this class, for C channels, with the config's arguments but the type."""
        return module(num_features, **arguments)

    def common_shift(self, x: Tensor) -> Tensor:
        """Of a norm that is synchronised: a shift, (C,), that is the same on all processes."""
        raise NotImplementedError

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The processes that share a batch: SyncBN's own group, or None for all."""
        return getattr(self.norm, "group" if _is_sync_bn_of_mmcv(type(self.norm)) else "process_group", None)

    def fold(self, num_features: int, like: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
        """What gives z of x, and the a and β in x̃ = a z + β that are left to fold, both (C,), float64.

        Args:
            num_features: C.
            like: a tensor with the device and type of the layer.
        """
        one = torch.ones(num_features, dtype=torch.float64)
        return self.folded(num_features, like), one, torch.zeros_like(one)

    def folded(self, num_features: int, like: Tensor) -> FoldedSampleNorm:
        """What gives x̃ of x, for a norm that looks at each sample."""
        raise NotImplementedError


@add_kind
class BatchNorm(Kind, base_norms.BatchNorm):
    """BN, and SyncBN where it has its batch for itself."""

    names: tuple[str, ...] = ("BN", "BN2d")
    module: type[nn.Module] = nn.BatchNorm2d
    tracks = True

    @classmethod
    def fits(cls, module: type[nn.Module]) -> bool:
        """Also what mmengine's revert_sync_batchnorm makes of SyncBN; not those of other than maps."""
        takes_maps = issubclass(module, _BatchNorm) and not issubclass(module, (nn.BatchNorm1d, nn.BatchNorm3d))
        return takes_maps and module.forward is _BatchNorm.forward

    def fold(self, num_features: int, like: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
        """z is x less the running mean."""
        norm = self.norm
        a, beta = parameters(norm, num_features)
        a = a * torch.rsqrt(exact(norm.running_var) + norm.eps)
        return FoldedMean(exact(norm.running_mean), like), a, beta


@add_kind
class SyncBatchNorm(BatchNorm, base_norms.SyncBatchNorm):
    """SyncBN in training in a group of more than one process."""

    names, module = ("SyncBN",), nn.SyncBatchNorm

    @classmethod
    def fits(cls, module: type[nn.Module]) -> bool:
        """PyTorch's and mmcv's."""
        return super(BatchNorm, cls).fits(module) or _is_sync_bn_of_mmcv(module)

    def common_shift(self, x: Tensor) -> Tensor:
        """The mean of their own."""
        shift, samples = ops.data_shift(x), x.shape[0]
        total = torch.cat([shift * samples, shift.new_full((1,), samples)])
        dist.all_reduce(total, group=self.process_group)
        return total[:-1] / total[-1].clamp(min=1)


@add_kind
class GroupNorm(Kind, base_norms.GroupNorm):
    """GN."""

    names: tuple[str, ...] = ("GN",)
    module: type[nn.Module] = nn.GroupNorm

    @classmethod
    def build(cls, module: type[nn.Module], num_features: int, **arguments: Any) -> nn.Module:
        """``num_groups`` has to divide C."""
        num_groups = arguments.pop("num_groups", None)
        if not is_count(num_groups) or num_features % num_groups:
            raise ValueError(
                f"CENorm's norm must have a num_groups that divides the {num_features} channels, "
                f"got num_groups={num_groups!r}"
            )
        return module(num_groups, num_features, **arguments)

    def folded(self, num_features: int, like: Tensor) -> FoldedGroupNorm:
        """As GN's."""
        return FoldedGroupNorm(self.norm, num_features, like, self.groups)


@add_kind
class LayerNorm(GroupNorm):
    """LN over C, H, W, as in the paper, which is GN with one group."""

    names = ("LN",)

    @classmethod
    def fits(cls, module: type[nn.Module]) -> bool:
        """None is known by its class: such a module is a GN."""
        return False

    @classmethod
    def build(cls, module: type[nn.Module], num_features: int, **arguments: Any) -> nn.Module:
        """GN's arguments, of which the number of groups is known."""
        return nn.GroupNorm(**dict(arguments, num_groups=1, num_channels=num_features))


@add_kind
class InstanceNorm(GroupNorm, base_norms.InstanceNorm):
    """IN."""

    names, module, tracks = ("IN", "IN2d"), nn.InstanceNorm2d, False

    @classmethod
    def build(cls, module: type[nn.Module], num_features: int, **arguments: Any) -> nn.Module:
        """It has no groups to choose."""
        return module(num_features, **arguments)


@add_kind
class Switchable(Kind, base_norms.SwitchableNorm):
    """SN."""

    names, module, tracks = ("SN",), SwitchableNorm, True

    def folded(self, num_features: int, like: Tensor) -> FoldedSwitchableNorm:
        """As SN's."""
        return FoldedSwitchableNorm(self.norm, num_features, like)


def kind_of(norm: nn.Module) -> type[Kind]:
    """The kind by which CE computes with a norm: by its parameters and buffers, without calling it.

    Raises:
        TypeError: CE cannot: the norm is of another kind, or has a forward of its own.
    """
    tracks = getattr(norm, "track_running_stats", None)
    fitting = (kind for kind in reversed(KINDS) if kind.fits(type(norm)) and kind.tracks is tracks)
    kind = next(fitting, None)
    if kind is None:
        raise TypeError(_expected(norm))
    if kind is SyncBatchNorm and not (norm.training and ops.spans_processes(kind(norm).process_group)):
        return EXACT[nn.BatchNorm2d, True]
    return kind


def build(norm: dict, num_features: int) -> nn.Module:
    """The base norm of a config.

    Args:
        norm: its ``type``, a kind's name or a class of modules, ``requires_grad`` of its parameters, and its arguments.
        num_features: C.

    Raises:
        TypeError: it is no config of a norm that CE can stand on.
        ValueError: GN's groups do not divide the channels.
    """
    if not isinstance(norm, dict):
        raise TypeError(_expected(norm))
    arguments = dict(norm)
    asked, requires_grad = arguments.pop("type", None), arguments.pop("requires_grad", True)
    kinds = (kind for kind in reversed(KINDS) if asked in kind.names or (isinstance(asked, type) and kind.fits(asked)))
    kind = next(kinds, None)
    if kind is None:
        raise TypeError(_expected(norm))
    try:
        module = kind.build(asked if isinstance(asked, type) else kind.module, num_features, **arguments)
        kind_of(module.requires_grad_(requires_grad))
    except (TypeError, RuntimeError) as error:  # arguments that it does not take, or that make another norm of it
        raise TypeError(f"{_expected(norm)} ({error})") from error
    expect(is_number(module.eps, least=0), "eps of CENorm's norm", module.eps, "a number of at least 0")
    return module


def _is_sync_bn_of_mmcv(module: type[nn.Module]) -> bool:
    """Whether it is mmcv's SyncBN, known by its name: to import the class takes mmcv's operators."""
    return (module.__module__, module.__name__) == ("mmcv.ops.sync_bn", "SyncBatchNorm")


def _expected(got: object) -> str:
    return (
        f"CE's base norm must be one of {', '.join(norm_names())}, or a class of such modules, BN and SN with running "
        f"statistics and IN without, got {got!r}; set for example norm=dict(type='BN')"
    )
