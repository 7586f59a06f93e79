"""mmdet's DetInferencer for a config file and a checkpoint, one step at a time: read, detect, say, draw.

The steps are apart because a picture that cannot be read must not take the others with it, and because the inferencer,
asked to write, gives two pictures of one name to one file. The model is built from the config file alone, never from
the config that a checkpoint holds, and the weights are read as data (:mod:`ce_mm.compat.safe_load`).
"""
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmdet.apis import DetInferencer
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from torch import nn

from ce_mm.launching.config import one_line, read_config, scope_of, type_name
from ce_mm.launching.model import check_fit
from ce_mm.launching.preflight import check_device
from ce_mm.transforms import LoadImage, PictureError

LOADERS = ("LoadImageFromFile", "LoadImage")
HEAD = re.compile(r"(.*\.)?bbox_head(\.\d+)?|mask_head|panoptic_head")
"""Where in mmdet's detectors the labels come from; elsewhere (RPNs, masks in RoI heads) other counts may stand."""


@dataclass(frozen=True)
class Picture:
    """A picture that has been read."""

    image: np.ndarray
    """(H, W, 3), BGR, or (H, W), turned upright, as the config's pipeline reads it."""
    data: dict
    """What the config's pipeline makes of it."""


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
        device = get_device() if device is None else device
        check_device(device)
        loader = _take_loader(cfg)
        cfg.load_from = checkpoint
        check_fit(cfg)
        if cfg.get("data_preprocessor") is not None:
            cfg.model.setdefault("data_preprocessor", cfg.data_preprocessor)  # as mmengine's Runner does
        # Nothing that is drawn here belongs into the folders and services that a training logs to.
        cfg.visualizer = {"type": "DetLocalVisualizer", **_dict(cfg.get("visualizer")), "vis_backends": None}
        self._load = LoadImage(**loader)
        try:
            with DefaultScope.overwrite_default_scope("mmdet"):
                self._inferencer = _Inferencer(cfg, checkpoint, device, show_progress=False)
        except (ValueError, OSError):
            raise
        except Exception as error:  # whatever the code behind a config's types makes of their arguments
            raise ValueError(f"{config}: mmdet's inferencer cannot be built of it ({one_line(error)})") from error
        self._names = self._inferencer.model.dataset_meta.get("classes")
        _check_names(self._names, self._inferencer.model, checkpoint)

    def read(self, path: Path) -> Picture:
        """Read a picture as a test run would, and prepare it.

        Raises:
            PictureError: the picture cannot be read, or not be prepared.
        """
        image = self._load.transform(dict(img_path=str(path)))["img"]
        try:
            return Picture(image, self._inferencer.pipeline(image))
        except Exception as error:  # a picture one pixel high that is scaled to nothing, for example
            raise PictureError(
                f"{path}: the config's test pipeline cannot prepare this picture of {image.shape[1]}×{image.shape[0]} "
                f"pixels ({one_line(error)})"
            ) from error

    def detect(self, pictures: list[Picture]) -> list[DetDataSample]:
        """Run the network on pictures as one batch."""
        batch = self._inferencer.collate_fn([picture.data for picture in pictures])
        with DefaultScope.overwrite_default_scope("mmdet"):
            return self._inferencer.forward(batch)

    def describe(self, sample: DetDataSample, score_threshold: float) -> list[dict]:
        """The objects with a score above a threshold, as the model orders them.

        Returns:
            For each a dict: ``label`` (from 0), ``name``, ``score``, ``bbox`` [x1, y1, x2, y2] in pixels from the upper
            left corner, and, if the detector gives masks, ``mask`` as COCO's run lengths, the counts as text.

        Raises:
            ValueError: a label has no name.
        """
        found = self._inferencer.pred2dict(sample)
        masks = found.get("masks", [None] * len(found["labels"]))
        objects = []
        for label, score, box, mask in zip(found["labels"], found["scores"], found["bboxes"], masks, strict=True):
            if not score > score_threshold:
                continue
            if label >= len(self._names):
                raise ValueError(
                    f"the detector found an object with label {label}, but checkpoint and config name "
                    f"{len(self._names)} classes only; give the config's test data metainfo with all names"
                )
            entry = dict(label=label, name=self._names[label], score=score, bbox=box)
            objects.append(entry if mask is None else entry | dict(mask=mask))
        return objects

    def draw(self, picture: Picture, sample: DetDataSample, score_threshold: float) -> np.ndarray:
        """The picture (H, W, 3), RGB, uint8, with the objects above a threshold drawn by mmdet's visualizer."""
        image = picture.image
        image = image[..., 2::-1] if image.ndim == 3 else np.stack([image] * 3, axis=-1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* is out of bounds")  # by a part of a pixel, where objects are cut off
            drawn = self._inferencer.visualize([image], [sample], return_vis=True, pred_score_thr=score_threshold)
        return drawn[0]


class _Inferencer(DetInferencer):
    """Where a checkpoint records no names of classes, mmdet's own takes COCO's, whatever the config says."""

    def _load_weights_to_model(self, model: nn.Module, checkpoint: dict, cfg: Config) -> None:
        meta = _dict(checkpoint.get("meta"))
        recorded = {str(key).lower(): value for key, value in _dict(meta.get("dataset_meta", meta)).items()}
        names = recorded.get("classes")
        if names is None or (isinstance(names, list | tuple) and not names):
            recorded = dict(DATASETS.build({**cfg.test_dataloader.dataset, "lazy_init": True}).metainfo)
        weights = checkpoint.get("state_dict", checkpoint)
        super()._load_weights_to_model(model, dict(state_dict=weights, meta=dict(dataset_meta=recorded)), cfg)


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


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


def _take_loader(cfg: Config) -> dict:
    """The settings by which a config reads pictures; in the config stands mmdet's own loader instead.

    The inferencer looks for that one's name, to replace it by one that takes arrays.
    """
    pipeline = _dict(_dict(cfg.get("test_dataloader")).get("dataset")).get("pipeline")
    for index, step in enumerate(pipeline if isinstance(pipeline, list) else []):
        if isinstance(step, dict) and type_name(step) in LOADERS:
            pipeline[index] = dict(type="LoadImageFromFile")
            # Not its backend_args: they are about where the data set lies.
            return {key: step[key] for key in ("to_float32", "color_type", "imdecode_backend") if key in step}
    raise ValueError(
        f"{cfg.filename}: it does not say how to prepare a picture; expected a test_dataloader with a dataset whose "
        f"pipeline begins with {' or '.join(LOADERS)}"
    )
