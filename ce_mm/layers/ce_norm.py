"""CENorm: a base norm followed by Channel Equilibrium, as one layer that stands where the norm stood.

    moments → coefficients of base norm, BD and IR → one group affine

The normalised map is never formed. The layer follows its base norm: what sets ``norm`` to eval() (frozen stages,
``norm_eval``) makes CE use its moving averages too.
"""
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from ce_mm import ops
from ce_mm.layers.arguments import expect, is_count, is_number
from ce_mm.layers.branches import BatchDecorrelation, InstanceReweighting
from ce_mm.layers.frozen_start import warn_of_frozen_start
from ce_mm.layers.norms import EXACT, Kind, build, kind_of
from ce_mm.layers.onlookers import is_captured, is_seen, one_call
from ce_mm.layers.statistics import Source, of_all_processes
from ce_mm.ops.custom_op import is_watched

BRANCHES = ("bd", "ir")


class CENorm(nn.Module):
    """Base norm and Channel Equilibrium, ``y = (λ Σ^(-1/2) + (1-λ) Diag(v_n)^(-1/2)) x̃``.

    Args:
        num_features: C.
        norm: config of the base norm: its ``type``, BN (the default), SyncBN, GN, LN, IN, SN or a class of such
            modules, ``requires_grad`` of its parameters, and its arguments.

            * SyncBN: the norm's own statistics are those of all processes, the covariance stays that of each process,
              as in the paper, unless ``sync``.
            * GN needs a ``num_groups`` that divides C. LN is layer norm over C, H, W, GroupNorm(1, C), as in the
              paper, and takes GN's other arguments (mmcv's own LN does not take maps).
            * IN has γ and β with ``affine=True`` alone, as PyTorch's; on a map of one position it gives β.
            * SN is :class:`~ce_mm.layers.SwitchableNorm`.

            GN, LN, IN and SN have a scale for each sample, so that CE needs a matrix for each sample and group: more
            memory than with BN where maps are small. They are no batch norms: ``norm_eval`` of OpenMMLab's backbones,
            which looks for those, freezes neither them nor CE, as the backbones of this package do.
        group_size: g, channels that are decorrelated together; halved until it divides C.
        iterations: T, Newton-Schulz steps.
        reduction: r, IR's hidden layer has C // r channels.
        branches: ``('bd', 'ir')``; one of them alone is used unscaled; ``()`` is the base norm alone.
        max_pool: take Σ after a 2×2 max pool.
        momentum: of the moving averages of Σ^(-1/2) and s^(-1/2); the base norm has its own.
        eps: added to the diagonal of Σ.
        correction: 1 takes σ̃² with Bessel's correction, as the authors' code does.
        sync: in training take all statistics, the base norm's too, over the batch of all processes of torch.distributed
            (with SyncBN as base, of its group); see :mod:`ce_mm.layers.statistics`. All of them must run the layer,
            forward and backward.

    Raises:
        ValueError: an argument is of the wrong kind or out of range, or GN's groups do not divide C.
        TypeError: ``norm`` is no config of a base norm that CE can stand on.

    State: ``norm.*``; ``mix`` (1,), the logit of λ, with both branches; ``ir.*`` and ``bd.*``. A checkpoint of the base
    norm alone (``weight``, ``bias``, ``running_mean``, ...) fills ``norm.*``.
    """

    mix: nn.Parameter | None

    _averages_seen = False  # whether it was looked at once, in a training, if the averages are at their start

    _abbr_ = "bn"  # mmcv names the layer by it, so that bn1, bn2, bn3 stay what checkpoints call them

    def __init__(
        self,
        num_features: int,
        norm: dict | None = None,
        group_size: int = 16,
        iterations: int = 3,
        reduction: int = 4,
        branches: tuple[str, ...] = BRANCHES,
        max_pool: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
        correction: int = 0,
        sync: bool = False,
    ) -> None:
        super().__init__()
        _check_arguments(
            num_features, branches, sync, group_size=group_size, iterations=iterations, reduction=reduction,
            max_pool=max_pool, momentum=momentum, eps=eps, correction=correction,
        )  # fmt: skip
        self.num_features = num_features
        self.branches = tuple(branch for branch in BRANCHES if branch in branches)
        self.momentum = momentum
        self.sync = sync
        self.norm = build(dict(type="BN") if norm is None else norm, num_features)
        self.bd = BatchDecorrelation(num_features, group_size, iterations, max_pool, eps) if "bd" in branches else None
        self.ir = InstanceReweighting(num_features, reduction, correction) if "ir" in branches else None
        self.register_parameter("mix", nn.Parameter(torch.zeros(1)) if self.branches == BRANCHES else None)
        #: Whether all training batches since the last reset to None were finite, a bool () on the device, or None.
        #: Without branches it stays None. Captured in a CUDA graph, that of the graph's last launch alone.
        self.finite: Tensor | None = None

    @property
    def weight(self) -> Tensor | None:
        """γ of the base norm, where initialisers such as ``zero_init_residual`` look for it."""
        return getattr(self.norm, "weight", None)

    @property
    def bias(self) -> Tensor | None:
        """β of the base norm."""
        return getattr(self.norm, "bias", None)

    @property
    def base(self) -> Kind:
        """The base norm as CE computes with it; it may have been replaced by another since.

        Raises:
            TypeError: by one that CE cannot stand on.
        """
        norm = self.norm
        kind = EXACT.get((type(norm), getattr(norm, "track_running_stats", None))) or kind_of(norm)
        return kind(norm)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        rectifier: float | None = None,
        overwrite: bool = False,
    ) -> Tensor:
        """CE of x, then, if asked, the residual add and the rectifier that follow it in a network.

        Args:
            x: (N, C, H, W), any floating type; sums are taken in float32 at least, also under autocast.
            residual: added to the result, of the same shape.
            rectifier: what cuts the result: ``ops.RELU``, or the ceiling of one that has one, as ``ops.RELU6``; None
                for none.
            overwrite: permission to write the result over x where no gradient is wanted, from callers who know that
                nobody needs x again; see :func:`ce_mm.ops.group_affine`. No use is made of it where a hook, of the
                layer, of a part of it or for all modules, may be shown x.

        Returns:
            (N, C, H, W), of x's type and memory format, a fresh tensor unless x is overwritten. With a rectifier the
            backward needs it, as it needs nn.ReLU's: callers must not change it in place.

        Raises:
            ValueError: x or the residual has another shape, or the rectifier is no ceiling.
            TypeError: x is of no floating type.
        """
        if isinstance(x, Proxy):
            return one_call(self, x, residual=residual, rectifier=rectifier)
        ops.check_map(f"CENorm({self.num_features})", x, self.num_features, residual, rectifier)
        weight = getattr(self.norm, "weight", None)
        if weight is not None and weight.numel() != self.num_features:
            raise RuntimeError(
                f"CENorm's base norm holds {weight.numel()} weights for {self.num_features} channels: it is another's, "
                "or something has sharded it by itself. Under FSDP a CENorm is wrapped whole; with its mixed precision "
                "set _module_classes_to_ignore=[] in its settings, or PyTorch wraps every batch norm"
            )
        if not self.branches:
            return self._norm_alone(x, residual, rectifier)
        overwrite = overwrite and not is_seen(self)
        with ops.full_precision(x.device.type):
            base = self.base
            source = self._source(x, base)
            usual = self._usual(x, residual, base, source)
            if usual is not None:
                y, finite = ops.usual_layer(usual, x, residual, rectifier, overwrite)
            else:
                asked = self._asked(x, base, source)
                moments = self._unread(x, base) if asked is None else ops.moments(x, **asked)
                known, seen = self._known(x, base, source, moments)
                coefficients, found = ops.coefficients(moments, base, self.bd, self.ir, self.mix, known, seen)
                finite = self._learn(base, source, found, moments.shift)
                y = ops.group_affine(x, moments.shift, *coefficients, residual, rectifier, moments.link, overwrite)
        if finite is not None:
            alone = x.is_cuda and is_captured()  # the flag before may be gone by a launch
            self.finite = finite if alone or self.finite is None else self.finite & finite
        return y

    def _source(self, x: Tensor, base: Kind) -> Source:
        """Where the statistics of this batch come from."""
        if not self.norm.training:
            if not self._averages_seen and self._is_in_training(x):
                self._averages_seen = True
                if all(branch.is_at_start() for branch in (self.bd, self.ir) if branch is not None):
                    warn_of_frozen_start()
            return Source.AVERAGES
        if self.sync and ops.spans_processes(base.process_group):
            return Source.PROCESSES
        return Source.BATCH if x.numel() else Source.AVERAGES

    def _is_in_training(self, x: Tensor) -> bool:
        """Whether a layer whose norm is in eval mode stands in a training, as far as it can tell.

        ``norm_eval`` leaves the layer itself in training mode, ``frozen_stages`` nothing to take a gradient of. Where a
        compiler or a mode looks on, or a CUDA graph is captured, it cannot tell.
        """
        if is_watched((x,)) or (x.is_cuda and is_captured()) or not torch.is_grad_enabled():
            return False
        return self.training or not any(tensor.requires_grad for tensor in (x, *self.parameters()))

    def _usual(self, x: Tensor, residual: Tensor | None, base: Kind, source: Source) -> ops.Usual | None:
        """The layer for ``ops.usual_layer``, or None where it is not usual, or not for such a batch."""
        learns = source is not Source.AVERAGES
        of_others = source is Source.PROCESSES or not base.local_batch_norm
        if of_others or self.branches != BRANCHES or (learns and self._pools(x)):
            return None
        bd, ir, mix = self.bd, self.ir, self.mix
        assert bd is not None and ir is not None and mix is not None
        return ops.as_usual(x, residual, base, bd, ir, mix, self.momentum, learns)

    def _asked(self, x: Tensor, base: Kind, source: Source) -> dict[str, Any] | None:
        """The arguments for ``ops.moments``, or None where nothing depends on the moments of x."""
        bd, learns = self.bd, source is not Source.AVERAGES
        if not (learns or self.ir is not None or base.per_sample or base.synchronised or base.guess is None):
            return None
        shift = None
        if base.synchronised and source is not Source.PROCESSES:
            shift = base.common_shift(x)  # SyncBN alone adds up over processes what all take about one shift
        elif not learns and not base.per_sample and base.guess is not None:
            shift = self._shift_by_buffers(x, base)  # scale and offset are the buffers', wherever this batch lies
        return dict(
            group_size=1 if bd is None else bd.group_size,
            shift=shift,
            guess=base.guess,
            products=learns and bd is not None and not self._pools(x),
            per_sample=base.per_sample,
        )

    def _pools(self, x: Tensor) -> bool:
        """Whether Σ is that of a pooled map, so that the products of x itself are not needed."""
        bd = self.bd
        return bd is not None and bd.max_pool and x.shape[0] > 0 and min(x.shape[2:]) >= 2

    def _unread(self, x: Tensor, base: Kind) -> ops.Moments:
        """What there is without a read of x, for a norm whose buffers tell all."""
        return ops.Moments(self._shift_by_buffers(x, base), None, None, None, x.shape[2] * x.shape[3])

    def _shift_by_buffers(self, x: Tensor, base: Kind) -> Tensor:
        guess = base.guess
        assert guess is not None
        mean, variance = (value.to(ops.compute_dtype(x.dtype)) for value in guess)
        return ops.needed_shift(mean, variance)

    def _known(
        self, x: Tensor, base: Kind, source: Source, moments: ops.Moments
    ) -> tuple[ops.Statistics, ops.Moments | None]:
        """The statistics that are not this batch's to give, and the moments that Σ is taken of, if not the map's."""
        bd, ir, seen, shift = self.bd, self.ir, None, moments.shift
        if source is Source.AVERAGES:
            # SyncBN asks the other processes though this one has nothing to say.
            mean, variance = (None, None) if base.synchronised else base.running(shift)
            whitening = None if bd is None else bd.running_whitening.to(shift.dtype)
            inv_std_scale = None if ir is None else ir.running_inv_std_scale.to(shift.dtype)
            return ops.Statistics(mean, variance, whitening, inv_std_scale), None
        if bd is not None and self._pools(x):
            seen = ops.pooled_moments(x, moments, self.weight, bd.group_size, base.per_sample)
        if source is Source.PROCESSES:
            return of_all_processes(base, bd, ir, x, moments, seen), seen
        return ops.UNKNOWN, seen

    def _learn(self, base: Kind, source: Source, found: ops.Statistics, shift: Tensor) -> Tensor | None:
        """Move the averages, those of a SyncBN also where CE has nothing to learn here, if all values are finite.

        Returns:
            Whether they are, or None where nothing is learnt.
        """
        if source is Source.AVERAGES and not base.synchronised:
            return None
        averages = []
        if source is not Source.AVERAGES and self.bd is not None:
            assert found.whitening is not None
            averages.append(ops.Average(self.bd.running_whitening, found.whitening, self.momentum))
        if source is not Source.AVERAGES and self.ir is not None:
            assert found.inv_std_scale is not None
            averages.append(ops.Average(self.ir.running_inv_std_scale, found.inv_std_scale, self.momentum))
        return base.learn(found, shift, averages)

    def _norm_alone(self, x: Tensor, residual: Tensor | None, rectifier: float | None) -> Tensor:
        y = self.norm(x)  # which a hook of the norm's may keep
        if residual is not None:
            y = (y + residual).to(y.dtype)
        if rectifier is not None:
            y = y.relu() if rectifier == ops.RELU else F.hardtanh(y, 0.0, rectifier)
        return y

    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        """As nn.Module's, but mmengine's initialisers get as far as the base norm.

        They are meant for the layers of a network: what sets a norm's weight to 0, or the classifier's layer, by the
        name of its class, to small numbers, would do the same to all that has a weight inside of CE.
        """
        if getattr(fn, "__module__", None) != "mmengine.model.weight_init":  # named: a layer asks for PyTorch alone
            return super().apply(fn)
        self.norm.apply(fn)
        fn(self)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take the weights of a plain norm that stood in this place: ``bn3.weight`` is ``bn3.norm.weight`` here."""
        for name in self.norm.state_dict():
            if prefix + name in state_dict:
                state_dict.setdefault(f"{prefix}norm.{name}", state_dict.pop(prefix + name))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """What print(module) shows of the arguments."""
        return f"{self.num_features}, branches={self.branches}" + (", sync=True" if self.sync else "")


def _check_arguments(num_features: int, branches: tuple[str, ...], sync: bool, **others: object) -> None:
    def check(holds: bool, name: str, value: object, expected: str) -> None:
        expect(holds, f"CENorm's {name}", value, expected)

    count, yes_or_no = "a whole number of at least 1", "True or False"
    check(is_count(num_features), "num_features", num_features, count)
    known = isinstance(branches, (tuple, list)) and all(branch in BRANCHES for branch in branches)
    check(known, "branches", branches, "a tuple of 'bd' and 'ir', one of them, or ()")
    reduction, eps = others["reduction"], others["eps"]
    fits = "ir" not in branches or is_count(reduction, num_features)
    ranges = {
        "group_size": (is_count(others["group_size"]), count),
        "iterations": (is_count(others["iterations"]), count),
        "reduction": (fits, f"a whole number from 1 to the number of channels, {num_features}"),
        "momentum": (is_number(others["momentum"], 0, 1), "a number from 0 to 1"),
        "eps": (is_number(eps) and eps > 0, "a number greater than 0"),
        "correction": (others["correction"] in (0, 1), "0 or 1"),
        "max_pool": (isinstance(others["max_pool"], bool), yes_or_no),
    }
    for name, (holds, expected) in ranges.items():
        check(holds, name, others[name], expected)
    check(isinstance(sync, bool), "sync", sync, yes_or_no)
    check(
        bool(branches) or not sync, "sync", sync,
        "False without branches, where there is the base norm alone; to synchronise that, set norm=dict(type='SyncBN')",
    )  # fmt: skip
