"""The model of a run and its checkpoints, looked at before it starts."""
import os
import re
import traceback
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import find_latest_checkpoint
from torch import Tensor, nn

from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint
from ce_mm.launching.config import PreflightError, dicts, is_local, type_name


def check_model(task: str, cfg: Config, args: Namespace) -> None:
    """Check the model of a run, and the checkpoints that the run will read.

    Raises:
        PreflightError: for the first of these that fails: reading a checkpoint, building the model, the fit of the
            checkpoint to test and the model.
    """
    if task == "train":
        for setting, checkpoint in _checkpoints_to_train_from(cfg, args):
            _read(checkpoint, setting)
        _build_model(cfg)
    elif is_local(args.checkpoint):
        weights = _read(args.checkpoint, "the checkpoint to test")
        _check_fit(_build_model(cfg), weights, f"{args.checkpoint} does not fit the model of {args.config}")


def _checkpoints_to_train_from(cfg: Config, args: Namespace) -> Iterator[tuple[str, str]]:
    """(setting, path) of every local checkpoint that training will read."""
    if args.resume in (None, "auto"):
        resumes = args.resume == "auto" or cfg.get("resume", False)
        if args.resume is None and is_local(cfg.get("load_from")):
            yield "load_from", cfg.load_from
        elif resumes:
            work_dir = args.work_dir or cfg.get("work_dir") or os.path.join("work_dirs", Path(args.config).stem)
            latest = find_latest_checkpoint(work_dir)
            if is_local(latest):
                yield "--resume", latest
    elif is_local(args.resume):
        yield "--resume", args.resume
    for node in dicts(cfg.model):
        if type_name(node) in ("Pretrained", "PretrainedInit") and is_local(node.get("checkpoint")):
            yield "init_cfg of the model", node["checkpoint"]


def _read(path: str, setting: str) -> dict:
    try:
        return read_checkpoint(os.path.expanduser(path), map_location="cpu")
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
