"""A detector on one picture: what it finds, as numbers and drawn.

The model is built from the config file alone, never from the config that a checkpoint holds, and the weights are read
as data (:mod:`ce_mm.checkpoints.reading`). A picture is read and prepared as the config's test would.
"""
import re
import warnings
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import encode_mask_results, mask2bbox
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from torch import nn

from ce_mm.launching.config import default_scope, one_line, read_config, scope_of, steps_of_test, trial, type_name
from ce_mm.launching.network import load_network
from ce_mm.prediction.drawing import Visualizer
from ce_mm.transforms import LoadImage, PictureError

LOADERS = ("LoadImageFromFile", "LoadImage")
HEAD = re.compile(r"(.*\.)?bbox_head(\.\d+)?|mask_head|panoptic_head")
"""Where in mmdet's detectors the labels come from; elsewhere (RPNs, masks in RoI heads) other counts may stand."""


class Detector:
    """A detector on a device.

    Args:
        config: a config file of mmdet's with a ``test_dataloader``, whose pipeline prepares the pictures; its
            data need not be there.
        checkpoint: weights that fit it; anything that mmengine loads. The names of the classes are those that it
            records, or else those of the config's test data, one for each class of the detector's head.
        device: where to compute; None for a GPU if there is one.

    Raises:
        ValueError: config, checkpoint or device cannot be used; the text names which, and why.
    """

    def __init__(self, config: str, checkpoint: str, device: str | None = None) -> None:
        cfg = read_config(config)
        if scope_of(cfg) != "mmdet":
            raise ValueError(
                f"{config}: it is of {scope_of(cfg)}; expected a detector of mmdet: what is drawn are boxes and masks, "
                "which a classifier does not give"
            )
        self._load, steps = _test_pipeline(cfg)
        self._model, recorded = load_network(cfg, checkpoint, device or get_device())
        with trial(f"{config}: the test data, which prepare the pictures, cannot be built", default_scope(cfg)):
            self._prepare = Compose(steps)
            meta = DATASETS.build({**cfg.test_dataloader.dataset, "lazy_init": True}).metainfo
        meta = dict(meta) | recorded
        self._names = meta.get("classes")
        _check_names(self._names, self._model, checkpoint)
        self._visualizer = Visualizer()
        self._visualizer.dataset_meta = meta

    def detect(self, path: Path, score_threshold: float) -> tuple[list[dict], np.ndarray]:
        """Find the objects with a score above a threshold in a picture.

        Returns:
            For each object, as the model orders them, a dict: ``label`` (from 0), ``name``, ``score``, ``bbox`` [x1,
            y1, x2, y2] in pixels from the upper left corner, and, if the detector gives masks, ``mask`` as COCO's run
            lengths, the counts as text. The picture (H, W, 3), RGB, uint8, turned upright, with these objects drawn.

        Raises:
            PictureError: the picture cannot be read or prepared, or the network fails on it.
        """
        image, data = self._read(path)
        try:
            with torch.no_grad(), DefaultScope.overwrite_default_scope("mmdet"):
                (sample,) = self._model.test_step(pseudo_collate([data]))
        except Exception as error:  # out of memory, for example, or whatever else the network's code raises
            raise PictureError(f"{path}: the network fails on this picture ({one_line(error)})") from error
        sample = sample.cpu()
        if not sample.pred_instances.bboxes.isfinite().all():
            raise PictureError(f"{path}: the network finds boxes that are not finite; look at the checkpoint")
        return self._describe(sample, score_threshold), self._draw(image, sample, score_threshold)

    def _read(self, path: Path) -> tuple[np.ndarray, dict]:
        """A picture as the pipeline reads it, (H, W, 3), BGR, or (H, W), and what it makes of it."""
        loaded = self._load.transform(dict(img_path=str(path), img_id=0))
        image = loaded["img"]
        try:
            return image, self._prepare(loaded)
        except Exception as error:  # a picture one pixel high that is scaled to nothing, for example
            raise PictureError(
                f"{path}: the config's test pipeline cannot prepare this picture of {image.shape[1]}×{image.shape[0]} "
                f"pixels ({one_line(error)})"
            ) from error

    def _describe(self, sample: DetDataSample, score_threshold: float) -> list[dict]:
        found = sample.pred_instances[sample.pred_instances.scores > score_threshold]
        masks, boxes = found.get("masks"), found.bboxes
        if masks is not None and not boxes.any():  # a detector of masks alone, such as SOLO
            boxes = mask2bbox(masks)
        labels = found.labels.tolist()
        objects = [
            dict(label=label, name=self._names[label], score=score, bbox=box)
            for label, score, box in zip(labels, found.scores.tolist(), boxes.tolist(), strict=True)
        ]
        if masks is not None:
            for entry, mask in zip(objects, encode_mask_results(masks.numpy()), strict=True):
                entry["mask"] = dict(mask, counts=mask["counts"].decode())
        return objects

    def _draw(self, image: np.ndarray, sample: DetDataSample, score_threshold: float) -> np.ndarray:
        rgb = image[..., 2::-1] if image.ndim == 3 else np.stack([image] * 3, axis=-1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* is out of bounds")  # by a part of a pixel, where objects are cut off
            self._visualizer.add_datasample("", rgb, sample, draw_gt=False, pred_score_thr=score_threshold)
        return self._visualizer.get_image()


def _test_pipeline(cfg: Config) -> tuple[LoadImage, list[dict]]:
    """What reads a picture, and the steps behind it."""
    first, *rest = steps_of_test(cfg) or [None]
    if not isinstance(first, dict) or type_name(first) not in LOADERS:
        raise ValueError(
            f"{cfg.filename}: it does not say how to prepare a picture; expected a test_dataloader with a dataset "
            f"whose pipeline begins with {' or '.join(LOADERS)}"
        )
    # Not its backend_args: they are about where the data set lies.
    settings = {key: first[key] for key in ("to_float32", "color_type", "imdecode_backend") if key in first}
    return LoadImage(**settings), rest


def _check_names(names: object, model: nn.Module, checkpoint: str) -> None:
    said = f"{checkpoint}: the names of the classes that it records, or else the config's test data"
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{said}, are {names!r}; expected a list of texts, one for each class")
    for place, head in model.named_modules():
        classes = getattr(head, "num_classes", None)
        if HEAD.fullmatch(place) and isinstance(classes, int) and classes != len(names):
            raise ValueError(
                f"{said}, are {len(names)}, but the model's {place} has {classes} classes; expected a name for each: "
                "mend dataset_meta in the checkpoint, or metainfo of the config's test data where it records none"
            )
