"""The data of a run, looked at before it starts: annotation files, picture folders, what is made of bad pictures.

Looking for a file costs nothing, and does not prove that a run needs it: names in an annotation file may be absolute,
pictures may come out of an archive. So where one is missing, the data set is asked for its first sample.
"""
import copy
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS

from ce_mm.evaluation.annotations import AnnotationError, check_annotation_file
from ce_mm.launching.config import (
    PreflightError,
    default_scope,
    dicts,
    inherits,
    is_local,
    registered,
    trial,
    type_name,
)


def check_data(part: str, cfg: Config) -> None:
    """Check the data of a part of a run.

    Args:
        part: 'train', 'val' or 'test'.

    Raises:
        PreflightError: for the first of these that fails: annotation files and picture folders of the dataloader, what
            those of validation and test make of bad pictures, annotation files of their evaluators.
    """
    scope, setting = default_scope(cfg), f"{part}_dataloader"
    for dataset in _datasets(cfg.get(setting)):
        _check_dataset(dataset, setting, scope)
    for step in dicts(cfg.get(setting)) if part != "train" else ():
        if type_name(step) == "LoadImage" and step.get("on_error") == "skip":
            raise PreflightError(
                f"{setting}: LoadImage's on_error='skip' would leave pictures out of the figures, or put others in "
                "their place; set on_error='refuse' there"
            )
    for evaluator in dicts(cfg.get(f"{part}_evaluator")):
        _check_evaluator(evaluator, f"{part}_evaluator", scope)


def _datasets(node: Any) -> Iterator[dict]:
    """The data sets of a dataloader that wrap no other one."""
    if isinstance(node, dict):
        inner = [node[key] for key in ("dataset", "datasets") if key in node]
        yield from _datasets(inner) if inner else (node,)
    elif isinstance(node, list | tuple):
        for child in node:
            yield from _datasets(child)


def _check_dataset(dataset: dict, setting: str, scope: str | None) -> None:
    kind = registered(DATASETS, dataset, scope, setting)
    if not _is_on_disk(dataset) or dataset.get("download", "download" in inspect.signature(kind).parameters):
        return
    missing = _missing(dataset)
    if missing:
        with trial(f"{setting}: {missing}, and its first sample cannot be had without", scope):
            DATASETS.build(copy.deepcopy(dataset))[0]
    elif inherits(kind, "mmdet.datasets.coco.CocoDataset", "load_data_list", "parse_data_info"):
        path = os.path.join(dataset.get("data_root") or "", dataset.get("ann_file") or "")
        if _check_annotations(path, setting) == 0:
            with trial(f"{setting}: {path}: there is no object in it, and of the data set nothing is left", scope):
                DATASETS.build(copy.deepcopy(dataset))


def _is_on_disk(node: dict) -> bool:
    root = node.get("data_root") or ""
    backend = (node.get("backend_args") or {}).get("backend", "local")
    return backend in ("local", "LocalBackend") and isinstance(root, str) and "://" not in root


def _missing(dataset: dict) -> str | None:
    """What a data set names that is not there."""
    root = dataset.get("data_root") or ""
    annotations = dataset.get("ann_file")
    if is_local(annotations):
        path = os.path.join(root, annotations)
        if not os.path.isfile(path):
            return f"{path}: there is no such annotation file (data_root and ann_file)"
    prefixes = dataset.get("data_prefix") or ""
    for prefix in prefixes.values() if isinstance(prefixes, dict) else [prefixes]:
        folder = os.path.join(root, prefix) if isinstance(prefix, str) else None
        if is_local(folder) and not os.path.isdir(folder):
            return f"{folder}: there is no such picture folder (data_root and data_prefix)"
    return None


def _check_evaluator(evaluator: dict, setting: str, scope: str | None) -> None:
    path = evaluator.get("ann_file")
    if not is_local(path) or not _is_on_disk(evaluator):
        return
    kind = registered(METRICS, evaluator, scope)
    if inherits(kind, "mmdet.evaluation.metrics.coco_metric.CocoMetric", "__init__"):
        _check_annotations(path, setting)
    elif not os.path.isfile(path):
        raise PreflightError(f"{setting}: {path}: there is no such annotation file")


def _check_annotations(path: str, setting: str) -> int | None:
    try:
        return check_annotation_file(Path(path))
    except (AnnotationError, OSError) as error:
        raise PreflightError(f"{setting}: {error}") from error
