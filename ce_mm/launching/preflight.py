"""What a run will reach for, looked at before anything is built or written: data, checkpoints and the model itself.

Without it, upstream finds such faults minutes later, one after the other, each under a traceback, with a work folder
already made. Only what lies on this machine is looked at: paths with ``://`` and datasets of other file backends are
left to upstream.
"""
import inspect
import os
import re
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import Tensor, nn

from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint
from ce_mm.checkpoints.resuming import latest_checkpoint, read_resumable
from ce_mm.evaluation.annotations import AnnotationError, check_annotation_file

Task = Literal["train", "test"]
PARTS = {"train": ("train", "val"), "test": ("test",)}
"""Task -> the prefixes of the ``*_cfg``, ``*_dataloader`` and ``*_evaluator`` settings that it uses."""


class PreflightError(ValueError):
    """Why a run cannot start: the text names the setting or file, what is wrong with it and what was expected."""


def read_config(path: str) -> Config:
    """Read a config file with all its bases and custom imports.

    Raises:
        PreflightError: there is no such file, or it cannot be read, parsed or executed.
    """
    if not Path(path).is_file():
        raise PreflightError(f"config file {path}: there is no such file; check the path")
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is a Python program, and may fail as any program may
        raise PreflightError(f"config file {path}: {type(error).__name__}: {error}") from error


def check(task: Task, cfg: Config, args: Namespace) -> None:
    """Check what ``task`` will reach for.

    Args:
        cfg: the config as it was read; ``args.cfg_options`` are merged into it.
        args: what upstream's parser of that task made of the command line.

    Raises:
        PreflightError: for the first of these that fails: annotation files and picture folders of the dataloaders in
            use, what those of validation and test make of bad pictures, annotation files of their evaluators,
            checkpoints, building the model, the fit of the checkpoint to test and the model.
    """
    _merge(cfg, args)
    for part in PARTS[task]:
        if cfg.get(f"{part}_cfg") is None:
            continue
        for dataset in _datasets(cfg.get(f"{part}_dataloader")):
            _check_dataset(dataset, f"{part}_dataloader", cfg.default_scope)
        if part != "train":
            _check_that_no_picture_is_left_out(cfg.get(f"{part}_dataloader"), f"{part}_dataloader")
        for evaluator in dicts(cfg.get(f"{part}_evaluator")):
            if type_name(evaluator) == "CocoMetric" and _is_local(evaluator.get("ann_file")):
                _check_annotations(evaluator["ann_file"], f"{part}_evaluator")
    if task == "train":
        for setting, checkpoint, read in _checkpoints_to_train_from(cfg, args):
            if not (cfg.get("runner_type") and os.path.isdir(checkpoint)):  # of parts, as FlexibleRunner saves
                _read(checkpoint, setting, read)
        _build_model(cfg)
    elif _is_local(args.checkpoint):
        weights = _read(args.checkpoint, "the checkpoint to test")
        _check_fit(_build_model(cfg), weights, f"{args.checkpoint} does not fit the model of {args.config}")


def check_device(device: str) -> None:
    """Check that PyTorch can use a device here.

    Raises:
        PreflightError: it cannot.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise PreflightError(
            f"the device {device!r} cannot be used: {reason}; expected cpu, or cuda with a GPU"
        ) from None


def _merge(cfg: Config, args: Namespace) -> None:
    if getattr(args, "no_validate", False):  # an option of mmpretrain's
        cfg.val_cfg = None
    if args.cfg_options is not None:
        try:
            cfg.merge_from_dict(args.cfg_options)
        except Exception as error:  # depends on what stands in the config at that place
            raise PreflightError(f"--cfg-options {args.cfg_options}: {type(error).__name__}: {error}") from error


def dicts(node: Any) -> Iterator[dict]:
    """All dicts in a tree of dicts and lists, the outer ones first."""
    if isinstance(node, dict):
        yield node
        node = [value for _, value in node.items()]
    if isinstance(node, list | tuple):
        for child in node:
            yield from dicts(child)


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


def type_name(node: dict) -> str:
    """The name of a registered type, without the library's scope; '' for none."""
    kind = node.get("type", "")
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__


def _is_local(path: object) -> bool:
    return isinstance(path, str) and bool(path) and "://" not in path


def _check_dataset(dataset: dict, setting: str, scope: str) -> None:
    backend = (dataset.get("backend_args") or {}).get("backend", "local")
    root = dataset.get("data_root") or ""
    if backend not in ("local", "LocalBackend") or "://" in root:
        return
    annotations = dataset.get("ann_file")
    if _is_local(annotations):
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
        if _is_local(folder) and not os.path.isdir(os.path.expanduser(folder)):
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


def _checkpoints_to_train_from(cfg: Config, args: Namespace) -> Iterator[tuple[str, str, Callable[..., dict]]]:
    """(setting, path, how it is read) of every local checkpoint that training will read."""
    if args.resume in (None, "auto"):
        resumes = args.resume == "auto" or cfg.get("resume", False)
        if args.resume is None and _is_local(cfg.get("load_from")):
            yield "load_from", cfg.load_from, read_resumable if resumes else read_checkpoint
        elif resumes:
            work_dir = args.work_dir or cfg.get("work_dir") or os.path.join("work_dirs", Path(args.config).stem)
            latest = _latest(work_dir, cfg)
            if _is_local(latest):
                yield "--resume", latest, read_resumable
    elif _is_local(args.resume):
        yield "--resume", args.resume, read_resumable
    for node in dicts(cfg.model):
        if type_name(node) in ("Pretrained", "PretrainedInit") and _is_local(node.get("checkpoint")):
            yield "init_cfg of the model", node["checkpoint"], read_checkpoint


def _latest(work_dir: str, cfg: Config) -> str | None:
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    try:
        return latest_checkpoint(work_dir, hook.get("out_dir"))
    except CheckpointError as error:
        raise PreflightError(f"--resume: {error}") from error


def _read(path: str, setting: str, read: Callable[..., dict] = read_checkpoint) -> dict:
    try:
        return read(os.path.expanduser(path), map_location="cpu")
    except (CheckpointError, OSError) as error:
        raise PreflightError(f"{setting}: {error}") from error


def _build_model(cfg: Config) -> nn.Module:
    model = cfg.model.copy()
    if cfg.get("data_preprocessor") is not None:
        model.setdefault("data_preprocessor", cfg.data_preprocessor)  # as mmengine's Runner does
    try:
        # Not on the meta device, although it is enough for names and shapes: mmpretrain's ResNet asks for values.
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            return MODELS.build(model)
    except Exception as error:  # whatever the model's own code makes of its arguments
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise PreflightError(
            f"the model of {cfg.filename} cannot be built: {type(error).__name__}: {error} "
            f"({place.filename}, line {place.lineno})"
        ) from error


def _check_fit(model: nn.Module, checkpoint: dict, complaint: str) -> None:
    source = checkpoint.get("state_dict", checkpoint)
    weights = {re.sub(r"^module\.", "", name): value for name, value in source.items() if isinstance(value, Tensor)}
    own = model.state_dict()
    reshaped = [name for name, value in weights.items() if name in own and value.shape != own[name].shape]
    try:
        # The model's own loading, as it may translate names, which a comparison of names would not.
        found = model.load_state_dict({k: v for k, v in weights.items() if k not in reshaped}, strict=False)
    except RuntimeError as error:
        raise PreflightError(f"{complaint}: {error}") from error
    missing = [name for name in found.missing_keys if name not in reshaped and not _may_differ(name)]
    unexpected = [name for name in found.unexpected_keys if not _may_differ(name)]
    if not (missing or unexpected or reshaped):
        return
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing keys (first: {missing[0]})")
    if unexpected:
        faults.append(f"{len(unexpected)} unexpected keys (first: {unexpected[0]})")
    if reshaped:
        first = reshaped[0]
        faults.append(
            f"{len(reshaped)} weights of another shape (first: {first}, {tuple(weights[first].shape)} in the "
            f"checkpoint, {tuple(own[first].shape)} in the model)"
        )
    raise PreflightError(f"{complaint}: {', '.join(faults)}; expected weights of the same architecture")


def _may_differ(name: str) -> bool:
    return name.endswith("num_batches_tracked") or name.startswith("data_preprocessor.")
