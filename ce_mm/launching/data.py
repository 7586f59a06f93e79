"""The data of a run, looked at before it starts: annotation files, picture folders, bad pictures."""
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from ce_mm.evaluation.annotations import AnnotationError, check_annotation_file
from ce_mm.launching.config import PreflightError, dicts, is_local, type_name


def check_data(part: str, cfg: Config) -> None:
    """Check the data of a part of a run.

    Args:
        part: 'train', 'val' or 'test'.

    Raises:
        PreflightError: for the first of these that fails: annotation files and picture folders of the dataloader, what
            those of validation and test make of bad pictures, annotation files of their evaluators.
    """
    for dataset in _datasets(cfg.get(f"{part}_dataloader")):
        _check_dataset(dataset, f"{part}_dataloader", cfg.default_scope)
    if part != "train":
        _check_that_no_picture_is_left_out(cfg.get(f"{part}_dataloader"), f"{part}_dataloader")
    for evaluator in dicts(cfg.get(f"{part}_evaluator")):
        if type_name(evaluator) == "CocoMetric" and is_local(evaluator.get("ann_file")):
            _check_annotations(evaluator["ann_file"], f"{part}_evaluator")


def _datasets(dataloader: dict | None) -> Iterator[dict]:
    """The datasets of a dataloader that wrap no other one."""
    todo = [dataloader]
    while todo:
        node = todo.pop()
        if isinstance(node, list | tuple):
            todo.extend(node)
        elif isinstance(node, dict):
            inner = [node[key] for key in ("dataset", "datasets") if key in node]
            todo.extend(inner)
            if not inner:
                yield node


def _check_dataset(dataset: dict, setting: str, scope: str) -> None:
    backend = (dataset.get("backend_args") or {}).get("backend", "local")
    root = dataset.get("data_root") or ""
    if backend not in ("local", "LocalBackend") or "://" in root:
        return
    annotations = dataset.get("ann_file")
    if is_local(annotations):
        path = os.path.join(root, annotations)
        if type_name(dataset) == "CocoDataset":
            _check_annotations(path, setting)
        elif not os.path.isfile(os.path.expanduser(path)):
            raise PreflightError(f"{setting}: {path}: there is no such annotation file (data_root and ann_file)")
    if _downloads_itself(dataset, scope):
        return
    prefixes = dataset.get("data_prefix") or ""
    for prefix in prefixes.values() if isinstance(prefixes, dict) else [prefixes]:
        folder = os.path.join(root, prefix)
        if is_local(folder) and not os.path.isdir(os.path.expanduser(folder)):
            raise PreflightError(f"{setting}: {folder}: there is no such picture folder (data_root and data_prefix)")


def _check_that_no_picture_is_left_out(dataloader: dict | None, setting: str) -> None:
    for step in dicts(dataloader):
        if type_name(step) == "LoadImage" and step.get("on_error") == "skip":
            raise PreflightError(
                f"{setting}: LoadImage's on_error='skip' would leave pictures out of the figures, or put others in "
                "their place; set on_error='refuse' there"
            )


def _downloads_itself(dataset: dict, scope: str) -> bool:
    with DefaultScope.overwrite_default_scope(scope), DATASETS.switch_scope_and_registry(None) as registry:
        kind = dataset.get("type")
        kind = registry.get(kind) if isinstance(kind, str) else kind
    if kind is None:
        raise PreflightError(
            f"the dataset type {dataset.get('type')!r} is unknown in {scope}; expected a registered name "
            "(a dataset of your own: put its module into custom_imports)"
        )
    return bool(dataset.get("download", "download" in inspect.signature(kind).parameters))


def _check_annotations(path: str, setting: str) -> None:
    try:
        check_annotation_file(Path(path).expanduser())
    except (AnnotationError, OSError) as error:
        raise PreflightError(f"{setting}: {error}") from error
