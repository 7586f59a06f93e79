"""A network and its data from a config and a checkpoint, as a test run of that config would have them.

The data are those of ``test_dataloader``, in their order, and the figure of merit is the first that the
``test_evaluator`` gives (top-1 accuracy of a classifier, box AP of a detector).
"""
import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner, load_checkpoint
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ce_mm.launching.config import default_scope, read_config
from ce_mm.launching.data import check_data
from ce_mm.launching.model import check_fit
from ce_mm.launching.preflight import check_device

#: Settings of a dataloader that has processes of its own, or batches in another order.
_OF_PROCESSES = ("num_workers", "persistent_workers", "prefetch_factor", "pin_memory", "batch_sampler")


@dataclass(frozen=True)
class Source:
    """What is to be measured.

    Args:
        config: a config file, with or without CE in it, of a classifier or a detector.
        checkpoint: weights that fit it; anything that mmengine loads.
        cfg_options: settings that replace the config's.
        device: where to compute.
        samples: how many of the pictures to take, spread evenly over the data set, which may be sorted by class; None
            for all.
    """

    config: str
    checkpoint: str
    cfg_options: dict | None = None
    device: str = "cpu"
    samples: int | None = None

    def load_model(self) -> nn.Module:
        """The network in eval mode; the data are not looked at.

        Raises:
            ValueError: config, options, checkpoint or device cannot be used; the message names which, and why.
        """
        return self._load_model(self._read_config())

    def load(self) -> "Subject":
        """The network in eval mode, and its data.

        Raises:
            ValueError: as :meth:`load_model`, or the data are not there.
        """
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"expected at least one sample, got {self.samples}")
        cfg = self._read_config()
        if cfg.get("test_dataloader") is None or cfg.get("test_evaluator") is None:
            raise ValueError(f"{self.config} has no test_dataloader or test_evaluator: the data to measure on, and how")
        check_data("test", cfg)
        return Subject(self._load_model(cfg), cfg, self.samples)

    def _read_config(self) -> Config:
        check_device(self.device)
        cfg = read_config(self.config, self.cfg_options)
        if "type" not in (cfg.get("model") or {}):
            raise ValueError(f"{self.config} has no model with a type; expected the config of a network")
        cfg.load_from = self.checkpoint
        return cfg

    def _load_model(self, cfg: Config) -> nn.Module:
        model = check_fit(cfg)
        with _quietly():
            load_checkpoint(model, self.checkpoint, map_location="cpu")
        return model.to(self.device).eval()


class Subject:
    """A network in eval mode with its data and its evaluator; made by :meth:`Source.load`."""

    def __init__(self, model: nn.Module, cfg: Config, samples: int | None) -> None:
        self.model = model
        self._scope = partial(DefaultScope.overwrite_default_scope, default_scope(cfg))
        with self._scope(), _quietly():
            dataset = DATASETS.build(cfg.test_dataloader.dataset)
            if hasattr(dataset, "full_init"):
                dataset.full_init()
            self.evaluator = Evaluator(cfg.test_evaluator)
            self.evaluator.dataset_meta = getattr(dataset, "metainfo", None)
            #: How many pictures there are.
            self.samples = min(samples or len(dataset), len(dataset))
            if self.samples < len(dataset):
                chosen = [index * len(dataset) // self.samples for index in range(self.samples)]
                for metric in self.evaluator.metrics:
                    if hasattr(metric, "img_ids"):  # CocoMetric would count what is in the other pictures as missed
                        metric.img_ids = [dataset.get_data_info(index)["img_id"] for index in chosen]
                dataset = Subset(dataset, chosen)
            settings = {key: value for key, value in cfg.test_dataloader.items() if key not in _OF_PROCESSES}
            settings |= dict(dataset=dataset, sampler=dict(type="DefaultSampler", shuffle=False))
            #: Its batches, in the order of the data set.
            self.dataloader: DataLoader = Runner.build_dataloader(settings)
        #: The name of what :meth:`evaluate` gives, after the first time.
        self.metric: str | None = None

    def _batches(self) -> Iterator:
        with self._scope():
            yield from tqdm(self.dataloader, "batches", leave=False, disable=None)

    def passes(self) -> Iterator[Callable[[], object]]:
        """Calls that run the network on one batch after the other."""
        return (partial(self.model.test_step, batch) for batch in self._batches())

    @torch.no_grad()
    def evaluate(self) -> float:
        """Run the network on all pictures, and give the first figure of its evaluator.

        Raises:
            ValueError: it gives none the first time. Later that is a 0: a detector finds nothing any more.
        """
        for batch in self._batches():
            self.evaluator.process(data_samples=self.model.test_step(batch), data_batch=batch)
        with self._scope(), _quietly():
            figures = self.evaluator.evaluate(self.samples)
        if self.metric is None:
            if not figures:
                raise ValueError("the evaluator gives no figure: the network finds nothing in these pictures")
            self.metric = next(iter(figures))
        return float(figures.get(self.metric, 0.0))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the tables that evaluators print and log, and the lines about what is loaded."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
