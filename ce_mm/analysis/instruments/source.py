"""A network and its data from a config and a checkpoint, as a test run of that config would have them.

The data are those of ``test_dataloader``, in their order, and the figure of merit is the first that the
``test_evaluator`` gives (top-1 accuracy of a classifier, box AP of a detector).
"""
import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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
        return self._load(with_data=False)[1]

    def load(self) -> "Subject":
        """The network in eval mode, and its data.

        Raises:
            ValueError: as :meth:`load_model`, or the data are not there.
        """
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"expected at least one sample, got {self.samples}")
        cfg, model = self._load(with_data=True)
        for setting in ("test_dataloader", "test_evaluator"):
            if cfg.get(setting) is None:
                raise ValueError(f"{self.config} has no {setting}, which says on what data and how to measure")
        with DefaultScope.overwrite_default_scope(default_scope(cfg)), _quietly():
            return Subject(model, cfg, self.samples)

    def _load(self, with_data: bool) -> tuple[Config, nn.Module]:
        check_device(self.device)
        cfg = read_config(self.config, self.cfg_options)
        if "type" not in (cfg.get("model") or {}):
            raise ValueError(f"{self.config} has no model with a type; expected the config of a network")
        cfg.load_from = self.checkpoint
        if with_data:
            check_data("test", cfg)
        model = check_fit(cfg)
        with _quietly():
            load_checkpoint(model, self.checkpoint, map_location="cpu")
        model.to(self.device).eval()
        return cfg, model

    def describe(self) -> dict:
        """What a report says of it."""
        return dict(config=self.config, checkpoint=self.checkpoint, cfg_options=self.cfg_options, device=self.device)


class Subject:
    """A network in eval mode with its data and its evaluator; made by :meth:`Source.load`."""

    def __init__(self, model: nn.Module, cfg: Config, samples: int | None) -> None:
        self.model = model
        self._scope = default_scope(cfg)
        settings = cfg.test_dataloader.copy()
        dataset = DATASETS.build(settings["dataset"])
        if hasattr(dataset, "full_init"):
            dataset.full_init()
        #: How many pictures there are.
        self.samples = len(dataset) if samples is None else min(samples, len(dataset))
        self.evaluator = Evaluator(cfg.test_evaluator)
        self.evaluator.dataset_meta = getattr(dataset, "metainfo", None)
        if self.samples < len(dataset):
            chosen = [index * len(dataset) // self.samples for index in range(self.samples)]
            for metric in self.evaluator.metrics:
                if hasattr(metric, "img_ids"):  # CocoMetric would count what is in the other pictures as missed
                    metric.img_ids = [dataset.get_data_info(index)["img_id"] for index in chosen]
            dataset = Subset(dataset, chosen)
        #: Its batches, in the order of the data set.
        self.dataloader: DataLoader = _dataloader(settings, dataset)
        #: The name of what :meth:`evaluate` gives, after the first time.
        self.metric: str | None = None

    def passes(self) -> Iterator[Callable[[], object]]:
        """Calls that run the network on one batch after the other."""
        with self._prepared():
            for batch in tqdm(self.dataloader, "batches", leave=False, disable=None):
                yield partial(self.model.test_step, batch)

    def evaluate(self) -> float:
        """Run the network on all pictures, and give the first figure of its evaluator.

        Raises:
            ValueError: it gives none the first time. Later that is a 0: a detector finds nothing any more.
        """
        with torch.no_grad(), self._prepared():
            for batch in tqdm(self.dataloader, "batches", leave=False, disable=None):
                self.evaluator.process(data_samples=self.model.test_step(batch), data_batch=batch)
            with _quietly():
                figures = self.evaluator.evaluate(self.samples)
        if self.metric is None:
            if not figures:
                raise ValueError("the evaluator gives no figure: the network finds nothing in these pictures")
            self.metric = next(iter(figures))
        return float(figures.get(self.metric, 0.0))

    def _prepared(self) -> AbstractContextManager:
        return DefaultScope.overwrite_default_scope(self._scope)


def _dataloader(settings: dict, dataset: torch.utils.data.Dataset) -> DataLoader:
    """The dataloader of a config over a dataset, in this process and in the order of the dataset."""
    for name in ("num_workers", "persistent_workers", "prefetch_factor", "pin_memory", "batch_sampler"):
        settings.pop(name, None)
    settings.update(dataset=dataset, sampler=dict(type="DefaultSampler", shuffle=False))
    return Runner.build_dataloader(settings)



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
