"""Batches with NaN or infinite values: which layer and loss met them, at which step, and no norm's averages spoilt.

CE and SN guard their own buffers and remember on the device whether they had to. Plain norms do not, neither do those
inside a CENorm without branches, so theirs are put back here. Where all norms are in eval mode the losses tell. The
device is asked, and the processes tell each other, once per ``interval`` iterations, not at every one.
"""
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from ce_mm.hooks.finite_record import FiniteRecord, Label, alike
from ce_mm.hooks.kept_averages import KeptAverages
from ce_mm.layers import CENorm, SwitchableNorm


class NonFiniteHook(Hook):
    """Reports layer, loss and iteration of every batch that was not finite, and keeps all norms' averages finite.

    A loss is whatever number the train step returns under a name with ``loss`` in it, as mmengine has it.

    A batch may be bad in one process alone: the first process reports for all, and each keeps its own buffers finite.

    Args:
        interval: iterations between two looks at the device; the report names the exact iterations all the same.
    """

    priority = "VERY_HIGH"  # before anyone copies this iteration's averages

    def __init__(self, interval: int = 50) -> None:
        if not isinstance(interval, int) or interval < 1:
            raise ValueError(f"NonFiniteHook's interval must be a whole number of at least 1, got {interval!r}")
        self.interval = interval
        self.after_others = _AfterOthers(self)
        self.norms, self.losses = FiniteRecord(), FiniteRecord()
        self.guarded: dict[Label, CENorm | SwitchableNorm] = {}
        self.kept: list[tuple[list[Label], KeptAverages]] = []

    def before_train(self, runner: Runner) -> None:
        """Come a second time, after the hooks that take averages of their own and before the checkpoint is saved."""
        if self.after_others not in runner.hooks:
            runner.register_hook(self.after_others)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Find the norms, which others may have replaced since the last time, and keep their averages."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.guarded, plain = _norms(model)
        self.kept = [
            (labels, KeptAverages([plain[label] for label in labels]))
            for labels in alike(plain, lambda label: plain[label].running_mean)
        ]

    @torch.no_grad()
    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Put back what is not finite, remember who saw it, and report every ``interval`` iterations."""
        self.look_at_norms(runner.iter + 1)
        losses = _losses(outputs, "" if isinstance(outputs, Mapping) else "loss")
        self.losses.add_scalars(runner.iter + 1, {(i, name): loss for i, (name, loss) in enumerate(losses)})
        if self.every_n_train_iters(runner, self.interval):
            self._report()

    def after_train(self, runner: Runner) -> None:
        """Report what has not been reported."""
        self._report()

    def look_at_norms(self, iteration: int) -> None:
        """Put back what is not finite, and remember who saw it."""
        seen = {label: norm.finite for label, norm in self.guarded.items() if norm.finite is not None}
        self.norms.add_scalars(iteration, seen)
        for label in seen:
            self.guarded[label].finite = None
        for labels, averages in self.kept:
            self.norms.add(iteration, labels, averages.put_back())

    def _report(self) -> None:
        """One line by the first process, if a batch was bad in any."""
        layers, losses = self.norms.take(), self.losses.take()
        bad = sorted(layers.keys() | losses.keys())
        first = min(bad, default=None)
        of_all = all_gather_object(_Found(bad, layers.get(first, []), losses.get(first, [])))
        if any(found.iterations for found in of_all):
            norms = len(self.guarded) + sum(len(labels) for labels, _ in self.kept)
            print_log(_sentences(of_all, norms), logger="current", level=logging.WARNING)


class _Found(NamedTuple):
    """What one process found."""

    iterations: list[int]
    layers: list[Label]  # at the first of them
    losses: list[Label]


def _sentences(of_all: list[_Found], norms: int) -> str:
    bad = sorted(set().union(*(found.iterations for found in of_all)))
    ranks = [rank for rank, found in enumerate(of_all) if bad[0] in found.iterations]
    layers = _names(label for rank in ranks for label in of_all[rank].layers)
    losses = _names(label for rank in ranks for label in of_all[rank].losses)
    where = f"of rank {', '.join(map(str, ranks))} " if len(of_all) > 1 else ""
    places = [f"first in {layers[0]}, {len(layers)} of {norms} norm layers in all"] if layers else []
    places += [f"in {', '.join(losses)}"] if losses else []
    text = f"NaN or infinite values at iteration {bad[0]} {where}{' and '.join(places)}."
    if len(bad) > 1:
        some = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        text += f" There were {len(bad)} such iterations ({some})."
    if layers:
        text += " Running averages keep their last finite values."
    return text


def _names(labels: Iterable[Label]) -> list[str]:
    return [name for _, name in sorted(set(labels))]


class _AfterOthers(Hook):
    """The hook a second time, for tensors that other hooks (PreciseBNHook) put in the place of a norm's own."""

    priority = "LOW"  # before the checkpoint is saved

    def __init__(self, hook: NonFiniteHook) -> None:
        self.hook = hook

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if any(averages.replaced() for _, averages in self.hook.kept):
            self.hook.look_at_norms(runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        if any(averages.replaced() for _, averages in self.hook.kept):
            self.hook.look_at_norms(runner.iter)


def _norms(model: nn.Module) -> tuple[dict[Label, CENorm | SwitchableNorm], dict[Label, _NormBase]]:
    """The norms that guard their running averages, and those that have some and do not, in the model's order."""
    guarded, plain, inside = {}, {}, set()
    for place, (name, module) in enumerate(model.named_modules()):
        if isinstance(module, CENorm) and module.branches:  # it speaks for its base norm; without, it only calls it
            guarded[place, name] = module
            inside.add(module.norm)
        elif module in inside:
            continue
        elif isinstance(module, SwitchableNorm):
            guarded[place, name] = module
        elif isinstance(module, _NormBase) and module.running_mean is not None and not is_lazy(module.running_mean):
            plain[place, name] = module
    return guarded, plain


def _losses(outputs: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every loss among what a train step returned, with its name, as a number or a flag that says if it is finite."""
    if isinstance(outputs, Mapping):
        for key, value in outputs.items():
            yield from _losses(value, f"{name}.{key}" if name else str(key))
    elif isinstance(outputs, (list, tuple)):
        for i, value in enumerate(outputs):
            yield from _losses(value, f"{name}.{i}")
    elif "loss" not in name:
        return
    elif isinstance(outputs, float):
        yield name, torch.tensor(math.isfinite(outputs))
    elif isinstance(outputs, Tensor) and outputs.is_floating_point():
        yield name, outputs if outputs.dim() == 0 else (outputs * 0).sum()
