"""Batches with NaN or infinite values: which layer and loss met them, at which step, and no norm's averages spoilt.

CE and SN guard their own buffers and remember on the device whether they had to. Plain norms do not, neither do those
inside a CENorm without branches, so theirs are put back here. Where all norms are in eval mode the losses tell. The
device is asked, and the processes tell each other, once per ``interval`` iterations, not at every one.
"""
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from ce_mm.hooks.kept_averages import KeptAverages
from ce_mm.layers import CENorm, SwitchableNorm

#: The place of a norm or loss among the others, and its name.
Label = tuple[int, str]
#: An iteration, and values (labels,) that should be finite, or flags that say whether they were.
Seen = tuple[int, Sequence[Label], Tensor]


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
        self.guarded: dict[Label, CENorm | SwitchableNorm] = {}
        self.kept: tuple[list[Label], KeptAverages] | None = None
        self.norms: list[Seen] = []
        self.losses: list[Seen] = []

    def before_train(self, runner: Runner) -> None:
        """Come a second time, after the hooks that take averages of their own and before the checkpoint is saved."""
        if self.after_others not in runner.hooks:
            runner.register_hook(self.after_others)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Find the norms, which others may have replaced since the last time, and keep their averages."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.guarded, plain = _norms(model)
        self.kept = (list(plain), KeptAverages(list(plain.values()))) if plain else None

    @torch.no_grad()
    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Put back what is not finite, remember who saw it, and report every ``interval`` iterations."""
        self.look_at_norms(runner.iter + 1)
        losses = list(_losses(outputs, "" if isinstance(outputs, Mapping) else "loss"))
        if losses:
            device = max((loss.device for _, loss in losses), key=lambda device: device.type != "cpu")
            labels = [(place, name) for place, (name, _) in enumerate(losses)]
            self.losses.append((runner.iter + 1, labels, torch.stack([loss.to(device) for _, loss in losses])))
        if self.every_n_train_iters(runner, self.interval):
            self._report()

    def after_train(self, runner: Runner) -> None:
        """Report what has not been reported."""
        self._report()

    def look_at_norms(self, iteration: int) -> None:
        """Put back what is not finite, and remember who saw it."""
        flags = {label: norm.finite for label, norm in self.guarded.items() if norm.finite is not None}
        if flags:
            self.norms.append((iteration, list(flags), torch.stack(list(flags.values()))))
        for label in flags:
            self.guarded[label].finite = None
        if self.kept is not None:
            labels, averages = self.kept
            self.norms.append((iteration, labels, averages.put_back()))

    def look_at_replaced(self, iteration: int) -> None:
        """Look at the norms once more where one has other tensors than this hook has seen."""
        if self.kept is not None and self.kept[1].replaced():
            self.look_at_norms(iteration)

    def _report(self) -> None:
        """One line by the first process, if a batch was bad in any."""
        of_all = all_gather_object((not_finite(self.norms), not_finite(self.losses)))
        self.norms, self.losses = [], []
        if any(layers or losses for layers, losses in of_all):
            norms = len(self.guarded) + (len(self.kept[0]) if self.kept else 0)
            print_log(_sentences(of_all, norms), logger="current", level=logging.WARNING)


class _AfterOthers(Hook):
    """The hook a second time, for tensors that other hooks (PreciseBNHook) put in the place of a norm's own."""

    priority = "LOW"  # before the checkpoint is saved

    def __init__(self, hook: NonFiniteHook) -> None:
        self.hook = hook

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.hook.look_at_replaced(runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        self.hook.look_at_replaced(runner.iter)


def not_finite(seen: list[Seen]) -> dict[int, list[Label]]:
    """The labels of what was not finite, by iteration; here the device is waited for."""
    bad = defaultdict(list)
    if seen:
        values = torch.cat([values.cpu() for _, _, values in seen])
        finite = values if values.dtype == torch.bool else values.isfinite()
        places = ((iteration, label) for iteration, labels, _ in seen for label in labels)
        for (iteration, label), is_finite in zip(places, finite.tolist(), strict=True):
            if not is_finite:
                bad[iteration].append(label)
    return dict(bad)


def _sentences(of_all: list[tuple[dict, dict]], norms: int) -> str:
    bad = sorted({iteration for found in of_all for labels in found for iteration in labels})
    ranks = [rank for rank, found in enumerate(of_all) if any(bad[0] in labels for labels in found)]
    layers, losses = (
        [name for _, name in sorted({label for found in of_all for label in found[part].get(bad[0], ())})]
        for part in (0, 1)
    )
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
    """Every loss among what a train step returned, with its name, as a number () that is finite if all of it is."""
    if isinstance(outputs, Mapping):
        for key, value in outputs.items():
            yield from _losses(value, f"{name}.{key}" if name else str(key))
    elif isinstance(outputs, (list, tuple)):
        for i, value in enumerate(outputs):
            yield from _losses(value, f"{name}.{i}")
    elif "loss" in name and isinstance(outputs, float):
        yield name, torch.tensor(outputs, dtype=torch.float64)
    elif "loss" in name and isinstance(outputs, Tensor) and outputs.is_floating_point():
        yield name, outputs if outputs.dim() == 0 else (outputs * 0).sum()
