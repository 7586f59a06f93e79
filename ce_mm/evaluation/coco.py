"""COCO average precision and recall of a results file: pycocotools' own numbers under mmdet's names.

pycocotools does all the counting, with its standard settings (1, 10 and 100 detections a picture and category). What is
added is quiet: checked input, no crash without any detection, and numbers by name instead of a printed page.
"""

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ce_mm.choices import METRICS
from ce_mm.evaluation.annotations import read_annotations
from ce_mm.evaluation.results_file import SHAPES, ResultsError, find_category_ids, read_results

# mmdet's names of pycocotools' twelve numbers in its order.
NUMBERS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
NUMBERS += ("AR@1", "AR@10", "AR@100", "AR_s@100", "AR_m@100", "AR_l@100")

logger = logging.getLogger(__name__)


def evaluate_coco(
    annotations: Path,
    results: Path,
    metrics: Sequence[str] = METRICS,
    per_category: bool = False,
    classes: Sequence[str] | None = None,
) -> dict[str, float]:
    """Evaluate a results file; log one line for each stage.

    Args:
        annotations: COCO instance annotations, see `read_annotations`.
        results: COCO result JSON or mmdet's dumped pickle, see `read_results`.
        metrics: of ``bbox`` and ``segm``, in the order wanted.
        per_category: also give each category's AP (IoU 0.50:0.95, all sizes, 100 detections).
        classes: the names of the model's classes, as mmdet takes them from the data set: what is evaluated, and what
            the labels of a pickle stand for. None for all categories of the annotations.

    Returns:
        ``coco/{metric}_{number}`` for the twelve numbers of each metric (``coco/bbox_mAP``, ``coco/segm_AR_s@100``) and
        ``coco/{metric}_{category}_precision`` for each category: between 0 and 1, in full precision, -1 where the
        annotations have no such object.

    Raises:
        AnnotationError, ResultsError: input that cannot be evaluated.
    """
    if not metrics or not set(metrics) <= set(METRICS):
        raise ResultsError(f"the metrics are {metrics!r}; expected one or more of {', '.join(METRICS)}")
    logger.info("reading %s", annotations)
    dataset = _read_truth(annotations, metrics)
    category_ids = find_category_ids(dataset, classes)
    logger.info("reading %s", results)
    detections = read_results(results, dataset, metrics, classes)

    truth = _index(dataset)
    numbers: dict[str, float] = {}
    for metric in metrics:
        numbers |= _evaluate_metric(truth, detections[metric], category_ids, metric, per_category)
    return numbers


def _read_truth(path: Path, metrics: Sequence[str]) -> dict[str, Any]:
    fields = {
        "images": ("id", "height", "width") if "segm" in metrics else ("id",),
        "annotations": ("id", "image_id", "category_id", "area", "iscrowd", *(SHAPES[metric] for metric in metrics)),
        "categories": ("id", "name"),
    }
    dataset = read_annotations(path, fields)
    if not dataset["annotations"]:
        logger.warning("%s: there is no object, so each number is -1", path)
    if any(annotation["id"] == 0 for annotation in dataset["annotations"]):
        logger.warning("%s: an annotation has the id 0, and pycocotools takes detections of it for wrong", path)
    return dataset


def _index(dataset: dict[str, Any]) -> COCO:
    """pycocotools' own form, of what has been checked and no more."""
    coco = COCO()
    coco.dataset = {key: dataset[key] for key in ("images", "annotations")}
    coco.dataset["categories"] = [{key: category[key] for key in ("id", "name")} for category in dataset["categories"]]
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _evaluate_metric(
    truth: COCO, entries: list[dict[str, Any]], category_ids: list[int], metric: str, per_category: bool
) -> dict[str, float]:
    counts = (len(entries), len(truth.anns), len(truth.imgs))
    logger.info("%s: comparing %d results with %d objects in %d pictures", metric, *counts)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, _index_detections(truth, entries), metric)
        evaluation.params.catIds = category_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = {f"coco/{metric}_{name}": float(value) for name, value in zip(NUMBERS, evaluation.stats, strict=True)}
    if per_category:
        # precision: IoU, recall, category, size, detections a picture
        for index, category_id in enumerate(evaluation.params.catIds):
            precision = evaluation.eval["precision"][:, :, index, 0, -1]
            present = precision[precision > -1]
            name = truth.cats[category_id]["name"]
            numbers[f"coco/{metric}_{name}_precision"] = float(np.mean(present)) if present.size else -1.0
    return numbers


def _index_detections(truth: COCO, entries: list[dict[str, Any]]) -> COCO:
    # loadRes takes the first result for an example, fails where there is none, and measures compressed masks only.
    if not entries:
        return _index(truth.dataset | {"annotations": []})
    for entry in entries:
        if "segmentation" in entry:
            entry["segmentation"] = truth.annToRLE(entry)
    return truth.loadRes(entries)
