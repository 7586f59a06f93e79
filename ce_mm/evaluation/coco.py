"""COCO average precision and recall of a results file: pycocotools' own numbers under mmdet's names.

pycocotools does all the counting, with its standard settings (1, 10 and 100 detections a picture and category). What is
added is quiet: checked input, no crash without any detection, and numbers by name instead of a printed page.
"""

import contextlib
import io
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ce_mm.evaluation.annotations import AnnotationError, read_annotations, require_fields
from ce_mm.evaluation.results_file import ResultsError, read_results
from ce_mm.files import replacing

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
) -> dict[str, float]:
    """Evaluate a results file; log one line for each stage.

    Args:
        annotations: COCO instance annotations, see `read_annotations`.
        results: COCO result JSON or mmdet's dumped pickle, see `read_results`.
        metrics: of ``bbox`` and ``segm``, in the order wanted.
        per_category: also give each category's AP (IoU 0.50:0.95, all sizes, 100 detections).
        out: JSON file for the numbers.

    Returns:
        ``coco/{metric}_{number}`` for the twelve numbers of each metric (``coco/bbox_mAP``, ``coco/segm_AR_s@100``) and
        ``coco/{metric}_{category}_precision`` for each category: between 0 and 1, in full precision, -1 where the
        annotations have no such object.

    Raises:
        AnnotationError, ResultsError: input that cannot be evaluated, or an ``out`` that cannot be written; before any
            evaluation.
    """
    metrics = tuple(dict.fromkeys(metrics))
    if not metrics or not set(metrics) <= set(METRICS):
        raise ResultsError(f"the metrics are {metrics!r}; expected one or more of {', '.join(METRICS)}")
    if out is not None:
        _check_out(out, annotations, results)

    logger.info("reading %s", annotations)
    dataset = _read_truth(annotations, metrics)
    logger.info("reading %s", results)
    detections = read_results(results, dataset, metrics)

    with _silence():
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
    numbers: dict[str, float] = {}
    for metric in metrics:
        numbers |= _evaluate_metric(truth, detections[metric], metric, per_category)
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
    dataset = read_annotations(path)
    needed = ("iscrowd", "segmentation") if "segm" in metrics else ("iscrowd",)
    require_fields(dataset["annotations"], needed, f"{path}: annotations", AnnotationError)
    for annotation in dataset["annotations"]:
        if "segm" in metrics and not annotation["segmentation"]:
            raise AnnotationError(
                f"{path}: annotation {annotation['id']} has no mask, and segm needs one; "
                "evaluate bbox alone (--metrics bbox)"
            )
        if annotation["id"] == 0:
            logger.warning("%s: an annotation has the id 0, and pycocotools takes detections of it for wrong", path)
    return dataset


def _evaluate_metric(truth: COCO, entries: list[dict[str, Any]], metric: str, per_category: bool) -> dict[str, float]:
    started = time.monotonic()
    counts = (len(entries), len(truth.anns), len(truth.imgs))
    logger.info("%s: comparing %d results with %d objects in %d pictures", metric, *counts)
    with _silence():
        evaluation = COCOeval(truth, _index_detections(truth, entries), metric)
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
    if entries:
        return truth.loadRes(entries)
    # loadRes takes the first result for an example, and fails where there is none.
    nothing = COCO()
    nothing.dataset = {key: truth.dataset[key] for key in ("images", "categories")} | {"annotations": []}
    nothing.createIndex()
    return nothing


def _silence() -> contextlib.AbstractContextManager[Any]:
    return contextlib.redirect_stdout(io.StringIO())


def _check_out(out: Path, annotations: Path, results: Path) -> None:
    if out.is_dir():
        raise ResultsError(f"{out}: is a folder; expected the name of a file for the numbers")
    if not out.parent.is_dir():
        raise ResultsError(f"{out}: there is no folder {out.parent}; make it first")
    if not os.access(out.parent, os.W_OK):
        raise ResultsError(f"{out}: the folder {out.parent} may not be written to; choose another")
    if out.resolve() in (annotations.resolve(), results.resolve()):
        raise ResultsError(f"{out}: is the annotation or results file itself; choose another name for the numbers")


def _write(out: Path, numbers: dict[str, float]) -> None:
    with replacing(out) as unfinished:
        unfinished.write_text(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
