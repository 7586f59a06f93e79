"""Results files of a detector, read as data: COCO's result JSON, or the pickle that mmdet's test script dumps.

Both become lists of COCO result entries, one list per metric, checked so that pycocotools cannot stumble over them.

* A JSON file's entries go to pycocotools as they stand. So where a mask result also has a box, pycocotools takes the
  box's area for the result's size (it decides what counts as small, medium and large), not the mask's.
* A pickle's predictions become what mmdet's CocoMetric makes of them: boxes from corners to x, y, width, height in
  double precision; masks without boxes, hence sized by their own area, and with ``mask_scores`` where there are any.
  A pickle does not name its labels: without the model's classes there must be as many categories as labels.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ce_mm.choices import METRICS
from ce_mm.evaluation.annotations import load_json, require_file
from ce_mm.evaluation.data_pickle import DataUnpickler
from ce_mm.evaluation.entries import check_entries, require_fields, shown

EXPECTED = "expected COCO results (.json) or what mmdet's test dumps with --out (.pkl, .pickle)"
#: What a metric compares.
SHAPES = dict(zip(METRICS, ("bbox", "segmentation"), strict=True))

logger = logging.getLogger(__name__)


class ResultsError(ValueError):
    """Results that cannot be read, evaluated or written: the message names the file, the fault and what helps."""


def read_results(
    path: Path, dataset: dict[str, Any], metrics: Sequence[str], classes: Sequence[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Read and check a results file.

    Args:
        path: a ``.json``, ``.pkl`` or ``.pickle`` file.
        dataset: what `read_annotations` returns for the annotation file that the results belong to; for masks the
            images need height and width.
        metrics: of ``bbox`` and ``segm``.
        classes: the names of the model's classes, which say what the labels of a pickle are.

    Returns:
        For each metric a new list of result entries: image_id, category_id, score, and bbox (x, y, width, height in
        pixels), segmentation (polygons or run lengths) or both.

    Raises:
        ResultsError: the file cannot be read, or is not a results file, or its entries do not fit the annotations or
            lack what a metric needs; a pickle whose labels could be of other categories, or that asks for anything but
            arrays, tensors and plain containers; ``classes`` that the annotation file has no category for.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        by_metric = _from_json(path, metrics)
    elif suffix in (".pkl", ".pickle"):
        by_metric = _from_pickle(path, dataset, metrics, classes)
    else:
        raise ResultsError(f"{path}: unknown extension {suffix!r}; {EXPECTED}")
    for metric, entries in by_metric.items():
        # pycocotools looks at the first one only and expects all to be alike.
        fields, where = list(entries[0]) if entries else [], f"{path}: {metric} results"
        require_fields(entries, fields, where, ResultsError)
        check_entries(entries, fields, dataset, where, ResultsError)
    return by_metric


def find_category_ids(dataset: dict[str, Any], classes: Sequence[str] | None) -> list[int]:
    """The ids that a model's labels 0, 1, 2, … stand for: as in mmdet, in the order of the annotation file.

    Args:
        dataset: what `read_annotations` returns.
        classes: the names of the model's classes; None for all categories of the file.

    Raises:
        ResultsError: the file has no category for one of the classes. mmdet would move the labels after it by one.
    """
    categories = dataset["categories"]
    names = [category["name"] for category in categories]
    unknown = [name for name in classes or () if name not in names]
    if unknown:
        some = ", ".join(map(str, names[:3]))
        raise ResultsError(
            f"{len(unknown)} of {len(classes)} classes are no categories of the annotation file (the first: "
            f"{shown(unknown[0])}); expected names of its {len(names)} categories ({some}, …)"
        )
    return [category["id"] for category in categories if classes is None or category["name"] in classes]


def _from_json(path: Path, metrics: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    entries = load_json(path, ResultsError, EXPECTED)
    if not isinstance(entries, list):
        raise ResultsError(f"{path}: holds a {type(entries).__name__}; expected a list of results (COCO's format)")
    require_fields(entries, ("image_id", "category_id", "score"), f"{path}: results", ResultsError)
    by_metric = {}
    for metric in metrics:
        shape = SHAPES[metric]
        for index, entry in enumerate(entries):
            if not entry.get(shape):
                raise ResultsError(f"{path}: results[{index}]: {_lacks(metric)}")
        fields = ["image_id", "category_id", "score", shape]
        if metric == "segm" and entries and entries[0].get("bbox"):
            fields.append("bbox")
        by_metric[metric] = [{field: entry[field] for field in fields if field in entry} for entry in entries]
    return by_metric


def _lacks(metric: str) -> str:
    [other] = set(SHAPES) - {metric}
    return f"{metric} needs the {SHAPES[metric]} of each result; without, evaluate {other} alone (--metrics {other})"


def _from_pickle(
    path: Path, dataset: dict[str, Any], metrics: Sequence[str], classes: Sequence[str] | None
) -> dict[str, list[dict[str, Any]]]:
    samples = _load_pickle(path)
    if not isinstance(samples, list):
        raise ResultsError(f"{path}: holds a {type(samples).__name__}; expected a list, one entry for each picture")
    require_fields(samples, ("img_id", "pred_instances"), f"{path}: pictures", ResultsError)
    predictions = [sample["pred_instances"] for sample in samples]
    require_fields(predictions, ("bboxes", "scores", "labels"), f"{path}: pred_instances", ResultsError)
    label_ids = find_category_ids(dataset, classes)
    by_metric: dict[str, list[dict[str, Any]]] = {metric: [] for metric in metrics}
    seen, highest = set(), -1
    for image_id, prediction in zip((sample["img_id"] for sample in samples), predictions, strict=True):
        where = f"{path}: image_id {shown(image_id)}"
        if type(image_id) not in (int, str) or image_id in seen:
            raise ResultsError(f"{where} is no id, or comes twice; expected that of each picture once")
        seen.add(image_id)
        labels = _labels(prediction["labels"], len(label_ids), where)
        highest = max(highest, *labels, -1)
        for metric, entries in by_metric.items():
            columns = labels, *_scored_shapes(prediction, metric, len(labels), where)
            for label, score, shape in zip(*columns, strict=True):
                entry = {"image_id": image_id, "category_id": label_ids[label], "score": score}
                entries.append({**entry, SHAPES[metric]: shape})
    if highest >= 0 and classes is None:
        if highest + 1 != len(label_ids):
            raise ResultsError(
                f"{path}: the labels end at {highest}, the annotation file has {len(label_ids)} categories, and a "
                "pickle does not say which are meant; name the model's classes (--config CONFIG or --classes NAME ...)"
            )
        logger.info("%s: label i is taken for category i of the %d in the annotation file", path, len(label_ids))
    return by_metric


def _scored_shapes(prediction: dict[str, Any], metric: str, count: int, where: str) -> tuple[list[float], list[Any]]:
    """The scores of a picture's predictions, and their boxes or masks."""
    scores = _values(prediction["scores"], (count,), "scores", where)
    corners = _values(prediction["bboxes"], (count, 4), "bboxes", where)
    if metric == "bbox":
        return scores, [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in corners]
    masks = prediction.get("masks", [])
    if not isinstance(masks, list) or len(masks) != count:
        raise ResultsError(f"{where}: expected a list of {count} masks; {_lacks('segm')}")
    if "mask_scores" in prediction:
        scores = _values(prediction["mask_scores"], (count,), "mask_scores", where)
    return scores, masks


def _labels(labels: Any, count: int, where: str) -> list[int]:
    labels = _values(labels, (None,), "labels", where)
    for label in labels:
        if type(label) is not int or not 0 <= label < count:
            expected = f"an integer below {count}, the number of classes (--classes, --config) or else of categories"
            raise ResultsError(f"{where}: the label {label!r} is out of range; expected {expected}")
    return labels


def _values(array: Any, shape: tuple[int | None, ...], name: str, where: str) -> list[Any]:
    """The numbers of a tensor or array of this shape, where None stands for any length."""
    if not isinstance(array, torch.Tensor | np.ndarray):
        raise ResultsError(f"{where}: {name} is a {type(array).__name__}; expected a tensor of the shape {shape}")
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise ResultsError(f"{where}: {name} has the shape {tuple(array.shape)}; expected {shape}")
    return array.tolist()


def _load_pickle(path: Path) -> Any:
    require_file(path, ResultsError, EXPECTED)
    try:
        with path.open("rb") as file:
            return DataUnpickler(file).load()
    except Exception as reason:  # damaged pickles raise nearly anything
        first_line = str(reason).partition("\n")[0] or type(reason).__name__
        raise ResultsError(f"{path}: not read as results, {first_line}; {EXPECTED}") from reason
