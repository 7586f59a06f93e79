"""Batches with NaN or infinite values: which layer met them first, at which step, and no norm's averages spoilt.

CE and SN guard their own buffers and remember on the device whether they had to. Plain batch norms do not, neither do
those inside a CENorm without branches, so theirs are put back here. The device is asked, and the processes tell each
other, once per ``interval`` iterations, not at every one.
"""
import logging
from typing import Any

import torch
from mmengine.dist import all_gather
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ce_mm.layers import CENorm, SwitchableNorm


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Reports layer and iteration of every batch that was not finite, and keeps all batch norms' buffers finite.

    A batch may be bad in one process alone: the first process reports for all, and each keeps its own buffers finite.

    Args:
        interval: iterations between two looks at the device; the report names the exact iterations all the same.
    """

    priority = "VERY_HIGH"  # before this iteration's checkpoint is saved

    def __init__(self, interval: int = 50) -> None:
        if interval < 1:
            raise ValueError(f"NonFiniteHook's interval must be at least 1 iteration, got {interval!r}")
        self.interval = interval

    def before_train(self, runner: Runner) -> None:
        """Find the layers, in the order in which the model holds them."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        layers = dict(model.named_modules())
        # A CENorm with branches speaks for its base norm; without, it only calls it.
        inside = {id(m.norm) for m in layers.values() if isinstance(m, CENorm) and m.branches}
        self.guarded_layers = {
            name: m
            for name, m in layers.items()
            if (isinstance(m, CENorm) and m.branches) or (isinstance(m, SwitchableNorm) and id(m) not in inside)
        }
        self.plain_layers = {
            name: m
            for name, m in layers.items()
            if isinstance(m, _BatchNorm) and m.track_running_stats and id(m) not in inside
        }
        order = list(layers)
        self.names = [*self.guarded_layers, *self.plain_layers]
        self.order = [order.index(name) for name in self.names]
        self.buffers = [b for m in self.plain_layers.values() for b in (m.running_mean, m.running_var)]
        self.kept = [b.clone() for b in self.buffers]
        self.history: list[Tensor] = []
        #: The flag of a layer that saw no training batch.
        self.fine = next(model.parameters()).new_ones((), dtype=torch.bool)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Put back what is not finite, remember who saw it, and report every ``interval`` iterations."""
        if not self.names:
            return
        flags = [self._take_flag(layer) for layer in self.guarded_layers.values()] + self._restore_plain()
        self.history.append(torch.stack(flags))
        if self.every_n_train_iters(runner, self.interval):
            self._report(runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Report what has not been reported."""
        if self.history:
            self._report(runner.iter - 1)

    def _take_flag(self, layer: CENorm | SwitchableNorm) -> Tensor:
        flag, layer.finite = layer.finite, None
        return self.fine if flag is None else flag

    def _restore_plain(self) -> list[Tensor]:
        flags = []
        for i in range(0, len(self.buffers), 2):
            finite = torch.cat(self.buffers[i : i + 2]).isfinite().all()
            for live, kept in zip(self.buffers[i : i + 2], self.kept[i : i + 2], strict=True):
                live.copy_(torch.where(finite, live, kept))
                kept.copy_(live)
            flags.append(finite)
        return flags

    def _report(self, last_iter: int) -> None:
        of_all = all_gather(torch.stack(self.history).byte())  # gloo has no bool
        finite = torch.stack(of_all).bool().cpu()  # (processes, iterations, layers)
        first_iter = last_iter - len(self.history) + 1
        self.history = []
        bad = (~finite.all(dim=2).all(dim=0)).nonzero().flatten().tolist()
        if not bad:
            return
        first = finite[:, bad[0]]
        layers = sorted((~first.all(dim=0)).nonzero().flatten().tolist(), key=self.order.__getitem__)
        processes = (~first.all(dim=1)).nonzero().flatten().tolist()
        where = f" of rank {', '.join(map(str, processes))}" if len(finite) > 1 else ""
        iterations = ", ".join(str(first_iter + i + 1) for i in bad[:5]) + (", ..." if len(bad) > 5 else "")
        print_log(
            f"NaN or infinite values in {len(bad)} of the last {finite.shape[1]} iterations ({iterations}); at "
            f"iteration {first_iter + bad[0] + 1}{where} first in {self.names[layers[0]]}, {len(layers)} of "
            f"{len(self.names)} norm layers in all. Their running averages keep their last finite values.",
            logger="current",
            level=logging.WARNING,
        )
