"""Batches with NaN or infinite values: which layer and loss met them, at which step, and no norm's averages spoilt.

CE and SN guard their own buffers and remember on the device whether they had to. PyTorch's norms move theirs by every
batch, also those inside a CENorm without branches, so these are put back here. Where all norms are in eval mode the
losses tell. The device is asked, and the processes tell each other, once per ``interval`` iterations.
"""
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ce_mm.hooks.kept_averages import KeptAverages
from ce_mm.layers import CENorm, SwitchableNorm
from ce_mm.layers.arguments import expect, is_count

#: Whether it is a loss and no norm, its place among its kind, and its name.
Label = tuple[bool, int, str]
#: An iteration, what was looked at, and whether that was finite, a bool (labels,).
Seen = tuple[int, Sequence[Label], Tensor]


class NonFiniteHook(Hook):
    """Reports layer, loss and iteration of every batch that was not finite, and keeps all norms' averages finite.

    A loss is a tensor that the train step returns under a name with ``loss`` in it, as mmengine has it.

    A batch may be bad in one process alone: the first process reports for all, and each keeps its own buffers finite.
    What another hook measures in passes of its own (PreciseBNHook) is that hook's.

    Args:
        interval: iterations between two looks at the device; the report names the exact iterations all the same.
    """

    priority = "VERY_HIGH"  # before anyone copies this iteration's averages

    def __init__(self, interval: int = 50) -> None:
        expect(is_count(interval), "NonFiniteHook's interval", interval, "a whole number of at least 1")
        self.interval = interval
        self.guarded: dict[Label, CENorm | SwitchableNorm] = {}
        self.plain: dict[Label, _NormBase] = {}
        self.kept: KeptAverages | None = None
        self.seen: list[Seen] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Find the norms, which others may have replaced since the last time, and keep their averages."""
        self.guarded, self.plain = _norms(runner.model.module if is_model_wrapper(runner.model) else runner.model)
        self.kept = KeptAverages(list(self.plain.values())) if self.plain else None

    @torch.no_grad()
    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Put back what is not finite, remember who saw it, and report every ``interval`` iterations."""
        iteration = runner.iter + 1
        flags = {label: norm.finite for label, norm in self.guarded.items() if norm.finite is not None}
        if flags:
            self.seen.append((iteration, list(flags), torch.stack(list(flags.values()))))
        for label in flags:
            self.guarded[label].finite = None
        if self.kept is not None:
            self.seen.append((iteration, list(self.plain), self.kept.put_back()))
        losses = _losses(outputs)
        if losses:
            device = max((loss.device for loss in losses.values()), key=lambda device: device.type != "cpu")
            labels = [(True, place, name) for place, name in enumerate(losses)]
            values = torch.stack([loss.to(device) for loss in losses.values()])
            self.seen.append((iteration, labels, values * 0 == 0))
        if self.every_n_train_iters(runner, self.interval):
            self._report()

    def after_train(self, runner: Runner) -> None:
        """Report what has not been reported."""
        self._report()

    def _report(self) -> None:
        """One line by the first process, if a batch was bad in any."""
        of_all = all_gather_object(not_finite(self.seen))
        self.seen = []
        if any(of_all):
            text = _sentences(of_all, len(self.guarded) + len(self.plain))
            print_log(text, logger="current", level=logging.WARNING)


def not_finite(seen: list[Seen]) -> dict[int, list[Label]]:
    """The labels of what was not finite, by iteration; here the device is waited for."""
    bad = defaultdict(list)
    if seen:
        finite = torch.cat([finite.cpu() for _, _, finite in seen]).tolist()
        places = ((iteration, label) for iteration, labels, _ in seen for label in labels)
        for (iteration, label), is_finite in zip(places, finite, strict=True):
            if not is_finite:
                bad[iteration].append(label)
    return dict(bad)


def _sentences(of_all: list[dict[int, list[Label]]], norms: int) -> str:
    bad = sorted({iteration for found in of_all for iteration in found})
    labels = sorted({label for found in of_all for label in found.get(bad[0], ())})
    layers, losses = ([name for is_loss, _, name in labels if is_loss == kind] for kind in (False, True))
    ranks = [rank for rank, found in enumerate(of_all) if bad[0] in found]
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


def _norms(model: nn.Module) -> tuple[dict[Label, CENorm | SwitchableNorm], dict[Label, _NormBase]]:
    """The norms that guard their running averages, and those that have some and do not, in the model's order."""
    guarded, plain, inside = {}, {}, set()
    for place, (name, module) in enumerate(model.named_modules()):
        label = False, place, name
        if isinstance(module, CENorm) and module.branches:  # it speaks for its base norm; without, it only calls it
            guarded[label] = module
            inside.add(module.norm)
        elif module in inside:
            continue
        elif isinstance(module, SwitchableNorm):
            guarded[label] = module
        elif isinstance(module, _NormBase) and module.running_mean is not None:
            plain[label] = module
    return guarded, plain


def _losses(outputs: Any) -> dict[str, Tensor]:
    """Each loss in what a train step returned, as a number () that is finite if all of it is."""
    return {
        name: loss if loss.dim() == 0 else (loss * 0).sum()
        for name, loss in (outputs.items() if isinstance(outputs, Mapping) else ())
        if "loss" in name and isinstance(loss, Tensor)
    }
