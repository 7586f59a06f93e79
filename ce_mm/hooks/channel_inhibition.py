"""Inhibited channels and λ while a network trains, in the visualizers that draw its loss."""
from contextlib import ExitStack
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ce_mm.analysis.channels import Magnitudes, check_threshold, inhibited_ratios, mean_of_first
from ce_mm.analysis.norms import mixing_ratios
from ce_mm.analysis.rectified import watching
from ce_mm.choices import LAYERS, THRESHOLD
from ce_mm.layers.arguments import expect, is_count


class ChannelInhibitionHook(Hook):
    """Logs the ratio of inhibited channels and λ of Channel Equilibrium, every ``interval`` iterations.

    Measured is the training batch itself, of the first process, in that iteration's own forward pass and in training
    mode: the part of the channels whose magnitude, the mean of |y| over the batch and positions behind the rectifier,
    lies below ``threshold``. (``ce_mm inhibited`` measures a data set in eval mode.) No further
    pass is run: that step takes about a twentieth longer, the training a thousandth at the default interval. λ is that
    after the step.

    To every visualizer go: ``inhibited/mean`` over the first ``layers`` layers; ``inhibited/layer01``, ... for each
    layer (:mod:`~ce_mm.analysis.rectified` says what that is; the log names them once), alike with and without CE; and
    ``lambda/<name>`` for each CE layer that has both branches.

    Args:
        interval: iterations from one measurement to the next.
        threshold: of the magnitude.
        layers: how many layers to average over, the first ones.
    """

    def __init__(self, interval: int = 50, threshold: float = THRESHOLD, layers: int = LAYERS) -> None:
        for name, value in (("interval", interval), ("layers", layers)):
            expect(is_count(value), f"ChannelInhibitionHook's {name}", value, "a whole number of at least 1")
        check_threshold(threshold)
        self.interval = interval
        self.threshold = threshold
        self.layers = layers
        self._watch = ExitStack()
        self._numbers: dict[str, int] | None = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Begin to watch, if it is time."""
        if runner.rank == 0 and self.every_n_train_iters(runner, self.interval):
            self._model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            self._magnitudes = Magnitudes()
            self._watch.enter_context(watching(self._model, self._magnitudes.see))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """End watching, and log what was seen."""
        if runner.rank != 0 or not self.every_n_train_iters(runner, self.interval):
            return
        self._watch.close()
        ratios = inhibited_ratios(self._magnitudes.means(), self.threshold)
        scalars = {f"lambda/{name}": ratio for name, ratio in mixing_ratios(self._model).items()}
        numbers = self._numbers or {}
        new = [place for place in ratios if place not in numbers]  # a part of a detector may rest for a while
        if new or self._numbers is None:
            self._numbers = numbers | {place: number for number, place in enumerate(new, len(numbers) + 1)}
            names = ", ".join(f"{self._numbers[place]} {place}" for place in new) or (
                "none; it looks for nn.ReLU, LeakyReLU, ELU, ReLU6 and CE, where the model is not compiled"
            )
            print_log(f"Layers of ChannelInhibitionHook: {names}", logger="current")
        if ratios:
            scalars["inhibited/mean"] = mean_of_first(ratios, self.layers)
            scalars |= {f"inhibited/layer{self._numbers[place]:02}": ratio for place, ratio in ratios.items()}
        if scalars:
            runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
