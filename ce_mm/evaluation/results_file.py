"""Results files of a detector, read as data: COCO's result JSON, or the pickle that mmdet's test script dumps.

Both become lists of COCO result entries, one list per metric, checked so that pycocotools cannot stumble over them.

* A JSON file's entries go to pycocotools as they stand. So where a mask result also has a box, pycocotools takes the
  box's area for the result's size (it decides what counts as small, medium and large), not the mask's.
* A pickle's predictions become what mmdet's CocoMetric makes of them: boxes from corners to x, y, width, height in
  double precision; masks without boxes, hence sized by their own area, and with ``mask_scores`` where there are any.
  Label i is, as in mmdet, the i-th of those categories of the annotation file that the model knows, in the order of the
  file and whatever the order of the model's classes. A pickle does not name these. Unless they are given, there must be
  as many categories as labels.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ce_mm.evaluation.annotations import check_file, load_json
from ce_mm.evaluation.data_pickle import DataUnpickler
from ce_mm.evaluation.entries import check_entries, require_fields, shown

EXPECTED = "expected COCO results (.json) or what mmdet's test dumps with --out (.pkl, .pickle)"

_CHECKED = ("image_id", "category_id", "score", "bbox", "segmentation")

# A tensor may repeat the numbers of its storage; harmless up to this many.
_REPEATED = 2**20

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
        pixels), segmentation (compressed run lengths) or both.

    Raises:
        ResultsError: the file cannot be read, or is not a results file, or its entries do not fit the annotations or
            lack what a metric needs; a pickle whose labels could be of other categories, or that asks for anything but
            arrays, tensors and plain containers; ``classes`` that the annotation file has no category for.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        by_metric = _from_json(path, metrics)
    elif suffix in (".pkl", ".pickle"):
        by_metric = _from_pickle(path, find_category_ids(dataset, classes), classes is not None, metrics)
    else:
        raise ResultsError(f"{path}: unknown extension {suffix!r}; {EXPECTED}")
    for metric, entries in by_metric.items():
        where = f"{path}: {metric} results"
        _require_one_form(entries, where)
        fields = [field for field in _CHECKED if entries and field in entries[0]]
        check_entries(entries, fields, dataset, where, ResultsError)
    return by_metric


def find_category_ids(dataset: dict[str, Any], classes: Sequence[str] | None) -> list[int]:
    """The ids that belong to a model's labels 0, 1, 2, …: as in mmdet, in the order of the annotation file.

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
        raise ResultsError(
            f"{len(unknown)} of {len(classes)} classes are no categories of the annotation file (the first: "
            f"{shown(unknown[0])}); expected names of its {len(names)} categories ({', '.join(map(str, names[:3]))}, …)"
        )
    return [category["id"] for category in categories if classes is None or category["name"] in classes]


def _from_json(path: Path, metrics: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    entries = load_json(path, ResultsError, EXPECTED)
    if not isinstance(entries, list):
        raise ResultsError(f"{path}: holds a {type(entries).__name__}; expected a list of results (COCO's format)")
    require_fields(entries, ("image_id", "category_id", "score"), f"{path}: results", ResultsError)
    shapes = {"bbox": ("bbox",), "segm": ("segmentation", "bbox")}  # what a metric needs first, then what it also uses
    by_metric = {}
    for metric in metrics:
        needed = shapes[metric][0]
        without = [index for index, entry in enumerate(entries) if not entry.get(needed)]
        if without:
            other = next(iter(set(shapes) - {metric}))
            raise ResultsError(
                f"{path}: {metric} needs {needed}, which {len(without)} of {len(entries)} results lack (the first is "
                f"results[{without[0]}]); where there is none, evaluate {other} alone (--metrics {other})"
            )
        by_metric[metric] = [
            {field: entry[field] for field in ("image_id", "category_id", "score")}
            | {shape: entry[shape] for shape in shapes[metric] if entry.get(shape)}
            for entry in entries
        ]
    return by_metric


def _from_pickle(
    path: Path, label_ids: list[int], is_named: bool, metrics: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    samples = _load_pickle(path)
    if not isinstance(samples, list):
        raise ResultsError(f"{path}: holds a {type(samples).__name__}; expected a list, one entry for each picture")
    require_fields(samples, ("img_id", "pred_instances"), f"{path}: pictures", ResultsError)
    predictions = [sample["pred_instances"] for sample in samples]
    require_fields(predictions, ("bboxes", "scores", "labels"), f"{path}: pred_instances", ResultsError)
    by_metric: dict[str, list[dict[str, Any]]] = {metric: [] for metric in metrics}
    seen, highest = set(), -1
    for sample, prediction in zip(samples, predictions, strict=True):
        image_id = sample["img_id"]
        if type(image_id) not in (int, str):
            raise ResultsError(f"{path}: img_id is {shown(image_id)}; expected the integer of the annotation file")
        where = f"{path}: image_id {shown(image_id)}"
        if image_id in seen:
            raise ResultsError(f"{path}: img_id {shown(image_id)} comes twice; each picture must be there once")
        seen.add(image_id)
        labels = _labels(prediction["labels"], len(label_ids), where)
        highest = max([highest, *labels])
        category_ids = [label_ids[label] for label in labels]
        count = len(labels)
        boxes = _values(prediction["bboxes"], (count, 4), "bboxes", where)
        scores = _values(prediction["scores"], (count,), "scores", where)
        if "bbox" in by_metric:
            for box, score, category_id in zip(boxes, scores, category_ids, strict=True):
                x1, y1, x2, y2 = box
                entry = {"image_id": image_id, "category_id": category_id, "score": score}
                by_metric["bbox"].append({**entry, "bbox": [x1, y1, x2 - x1, y2 - y1]})
        if "segm" in by_metric:
            masks = prediction.get("masks", [])
            if not isinstance(masks, list) or len(masks) != count:
                raise ResultsError(
                    f"{where}: segm needs the segmentation of each prediction, a list of {count} masks; for a detector "
                    "without masks evaluate bbox alone (--metrics bbox)"
                )
            if "mask_scores" in prediction:
                scores = _values(prediction["mask_scores"], (count,), "mask_scores", where)
            for mask, score, category_id in zip(masks, scores, category_ids, strict=True):
                entry = {"image_id": image_id, "category_id": category_id, "score": score}
                by_metric["segm"].append({**entry, "segmentation": mask})
    if highest >= 0 and not is_named:
        _require_as_many(path, highest + 1, len(label_ids))
    return by_metric


def _require_as_many(path: Path, labels: int, categories: int) -> None:
    if labels != categories:
        raise ResultsError(
            f"{path}: the labels end at {labels - 1}, the annotation file has {categories} categories, and a pickle "
            "does not say which are meant; name the model's classes (--config CONFIG or --classes NAME NAME ...)"
        )
    logger.info("%s: label i is taken for category i of the %d in the annotation file", path, categories)


def _labels(labels: Any, count: int, where: str) -> list[int]:
    labels = _values(labels, (None,), "labels", where)
    for label in labels:
        if type(label) is not int or not 0 <= label < count:
            raise ResultsError(
                f"{where}: the label {label!r} is out of range; expected an integer from 0 to {count - 1}, for the "
                f"{count} categories that the annotation file has, or --classes or --config name"
            )
    return labels


def _values(array: Any, shape: tuple[int | None, ...], name: str, where: str) -> list[Any]:
    """The numbers of a tensor or array of this shape, where None stands for any length."""
    if not isinstance(array, torch.Tensor | np.ndarray):
        raise ResultsError(f"{where}: {name} is a {type(array).__name__}; expected a tensor of the shape {shape}")
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise ResultsError(f"{where}: {name} has the shape {tuple(array.shape)}; expected {shape}")
    if isinstance(array, torch.Tensor) and array.nbytes > max(array.untyped_storage().nbytes(), _REPEATED):
        raise ResultsError(f"{where}: {name} of the shape {tuple(array.shape)} repeats few numbers; expected them all")
    return array.tolist()


def _require_one_form(entries: list[dict[str, Any]], where: str) -> None:
    for index, entry in enumerate(entries):
        # pycocotools looks at the first entry only and then expects all to be alike.
        if ("bbox" in entry) != ("bbox" in entries[0]):
            raise ResultsError(
                f"{where}[{index}]: only some of the results have a bbox; expected one in all of them or in none"
            )
        mask = entry.get("segmentation", {"counts": ""})
        if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str | bytes):
            raise ResultsError(
                f"{where}[{index}]: the segmentation {shown(mask)} is not a compressed run-length encoding; expected "
                "what pycocotools.mask.encode returns (size and counts)"
            )


def _load_pickle(path: Path) -> Any:
    check_file(path, ResultsError, EXPECTED)
    try:
        with path.open("rb") as file:
            return DataUnpickler(file).load()
    except Exception as reason:  # damaged pickles raise nearly anything
        first_line = str(reason).partition("\n")[0] or type(reason).__name__
        raise ResultsError(f"{path}: not read as results, {first_line}; {EXPECTED}") from reason
