"""COCO average precision and recall of a results file: pycocotools' own numbers under mmdet's names.

pycocotools does all the counting, with its standard settings (1, 10 and 100 detections a picture and category). What is
added is quiet: checked input, no crash without any detection, and numbers by name instead of a printed page.
"""

import contextlib
import io
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ce_mm.evaluation.annotations import read_annotations
from ce_mm.evaluation.results_file import ResultsError, find_category_ids, read_results
from ce_mm.files import check_destination, replacing

METRICS = ("bbox", "segm")

# pycocotools' twelve numbers in its order: mmdet's name, then IoU, size of the objects and detections a picture.
NUMBERS = (
    ("mAP", "0.50:0.95", "all", 100),
    ("mAP_50", "0.50", "all", 100),
    ("mAP_75", "0.75", "all", 100),
    ("mAP_s", "0.50:0.95", "small", 100),
    ("mAP_m", "0.50:0.95", "medium", 100),
    ("mAP_l", "0.50:0.95", "large", 100),
    ("AR@1", "0.50:0.95", "all", 1),
    ("AR@10", "0.50:0.95", "all", 10),
    ("AR@100", "0.50:0.95", "all", 100),
    ("AR_s@100", "0.50:0.95", "small", 100),
    ("AR_m@100", "0.50:0.95", "medium", 100),
    ("AR_l@100", "0.50:0.95", "large", 100),
)

logger = logging.getLogger(__name__)


def evaluate_coco(
    annotations: Path,
    results: Path,
    metrics: Sequence[str] = METRICS,
    per_category: bool = False,
    out: Path | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, float]:
    """Evaluate a results file; log one line for each stage.

    Args:
        annotations: COCO instance annotations, see `read_annotations`.
        results: COCO result JSON or mmdet's dumped pickle, see `read_results`.
        metrics: of ``bbox`` and ``segm``, in the order wanted.
        per_category: also give each category's AP (IoU 0.50:0.95, all sizes, 100 detections).
        out: JSON file for the numbers.
        classes: the names of the model's classes, as mmdet takes them from the data set: what is evaluated, and what
            the labels of a pickle stand for. None for all categories of the annotations, see `read_results`.

    Returns:
        ``coco/{metric}_{number}`` for the twelve numbers of each metric (``coco/bbox_mAP``, ``coco/segm_AR_s@100``) and
        ``coco/{metric}_{category}_precision`` for each category: between 0 and 1, in full precision, -1 where the
        annotations have no such object.

    Raises:
        AnnotationError, ResultsError: input that cannot be evaluated.
        DestinationError: an ``out`` that cannot be written, or is one of the files to read; before any of them is read.
    """
    metrics = tuple(dict.fromkeys(metrics))
    if not metrics or not set(metrics) <= set(METRICS):
        raise ResultsError(f"the metrics are {metrics!r}; expected one or more of {', '.join(METRICS)}")
    if out is not None:
        check_destination(out, [annotations, results])

    logger.info("reading %s", annotations)
    dataset = _read_truth(annotations, metrics)
    category_ids = find_category_ids(dataset, classes)
    logger.info("reading %s", results)
    detections = read_results(results, dataset, metrics, classes)

    truth = _index(dataset)
    numbers: dict[str, float] = {}
    for metric in metrics:
        numbers |= _evaluate_metric(truth, detections[metric], category_ids, metric, per_category)
    if out is not None:
        _write(out, numbers)
        logger.info("written %s", out)
    return numbers


def format_table(numbers: dict[str, float]) -> str:
    """The numbers of `evaluate_coco` as text: a row for each number and category, a column for each metric."""
    metrics = [metric for metric in METRICS if f"coco/{metric}_mAP" in numbers]
    rows = [(f"{name:<10}{iou:<11}{size:<8}{limit:>7}", name) for name, iou, size, limit in NUMBERS]
    lines = ["number    IoU        size    maxDets" + "".join(f"{metric:>9}" for metric in metrics)]
    lines += [_row(label, numbers, metrics, name) for label, name in rows]
    prefix, suffix = f"coco/{metrics[0]}_", "_precision"
    names = [key[len(prefix) : -len(suffix)] for key in numbers if key.startswith(prefix) and key.endswith(suffix)]
    if names:
        width = max(len(lines[0]) - 9 * len(metrics), *map(len, names))
        lines += ["", f"{'mAP by category':<{width}}" + "".join(f"{metric:>9}" for metric in metrics)]
        lines += [_row(f"{name:<{width}}", numbers, metrics, name + suffix) for name in names]
    return "\n".join(lines)


def _row(label: str, numbers: dict[str, float], metrics: list[str], name: str) -> str:
    return label + "".join(f"{numbers[f'coco/{metric}_{name}']:9.3f}" for metric in metrics)


def _read_truth(path: Path, metrics: Sequence[str]) -> dict[str, Any]:
    shapes = {"bbox": "bbox", "segm": "segmentation"}
    fields = {
        "images": ("id", "height", "width") if "segm" in metrics else ("id",),
        "annotations": ("id", "image_id", "category_id", "area", "iscrowd", *(shapes[metric] for metric in metrics)),
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
    with _silence():
        coco.createIndex()
    return coco


def _evaluate_metric(
    truth: COCO, entries: list[dict[str, Any]], category_ids: list[int], metric: str, per_category: bool
) -> dict[str, float]:
    started = time.monotonic()
    counts = (len(entries), len(truth.anns), len(truth.imgs))
    logger.info("%s: comparing %d results with %d objects in %d pictures", metric, *counts)
    with _silence():
        evaluation = COCOeval(truth, _index_detections(truth, entries), metric)
        evaluation.params.catIds = category_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = [name for name, *_ in NUMBERS]
    numbers = {f"coco/{metric}_{name}": float(value) for name, value in zip(names, evaluation.stats, strict=True)}
    if per_category:
        # precision: IoU, recall, category, size, detections a picture
        for index, category_id in enumerate(evaluation.params.catIds):
            precision = evaluation.eval["precision"][:, :, index, 0, -1]
            present = precision[precision > -1]
            name = truth.cats[category_id]["name"]
            numbers[f"coco/{metric}_{name}_precision"] = float(np.mean(present)) if present.size else -1.0
    logger.info("%s: done in %.1f s", metric, time.monotonic() - started)
    return numbers


def _index_detections(truth: COCO, entries: list[dict[str, Any]]) -> COCO:
    # loadRes takes the first result for an example, and fails where there is none.
    return truth.loadRes(entries) if entries else _index(truth.dataset | {"annotations": []})


def _silence() -> contextlib.AbstractContextManager[Any]:
    return contextlib.redirect_stdout(io.StringIO())


def _write(out: Path, numbers: dict[str, float]) -> None:
    with replacing(out) as unfinished:
        text = json.dumps(numbers, indent=2, ensure_ascii=False) + "\n"
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a character in a name
