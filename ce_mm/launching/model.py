"""The model of a run, looked at before it starts: that it can be built and optimised, and that its weights fit."""
import math
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain

import torch
from mmengine.config import Config
from mmengine.model import BaseTTAModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import load_state_dict
from torch import Tensor, nn

from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint
from ce_mm.checkpoints.resuming import latest_checkpoint, read_resumable
from ce_mm.launching.config import PreflightError, default_scope, inherits, is_local, trial, type_name


def check_training(cfg: Config) -> None:
    """Check what a training makes of its model.

    Raises:
        PreflightError: for the first of these that fails: reading the checkpoint to start from, building the model,
            reading the checkpoints of its init_cfg, the fit of any weights of these checkpoints, building the
            optimizer.
    """
    resumes, start = cfg.get("resume"), {}
    setting = "--resume" if resumes else "load_from"
    path = _start(cfg)
    if is_local(path) and not (cfg.get("runner_type") and os.path.isdir(path)):  # of parts, as FlexibleRunner saves
        start = _read(path, setting, read_resumable if resumes else read_checkpoint)
    model = _build_model(cfg)
    for name, module, checkpoint in _pretrained(model, "model"):
        _read(checkpoint, f"init_cfg of {name}")
        if path is None:
            _check_that_some_arrive(module, module.init_weights, f"init_cfg of {name}: {checkpoint}", cfg)
    if start:
        load = partial(load_state_dict, model, _weights(start), logger="silent")
        _check_that_some_arrive(model, load, f"{setting}: {path}", cfg)
    _check_optimizer(model, cfg, start.get("optimizer") if resumes else None)


def check_fit(cfg: Config) -> nn.Module:
    """Check that the model can be built, and that the checkpoint to test, ``cfg.load_from``, fits it.

    Returns:
        The model.

    Raises:
        PreflightError: for the first of these that fails: reading the checkpoint, building the model, the fit, merging
            what it finds in several views of a picture.
    """
    path = cfg.load_from
    checkpoint = _read(path, "the checkpoint to test") if is_local(path) else None
    model = _build_model(cfg)
    if isinstance(model, BaseTTAModel):
        _check_that_views_merge(model)
        model = model.module  # whose weights a checkpoint holds
    if checkpoint is not None:
        _check_weights(model, _weights(checkpoint), f"{path} does not fit the model of {cfg.filename}")
    return model


def _build_model(cfg: Config) -> nn.Module:
    """The model of a config, on the CPU, as mmengine's Runner would build it."""
    settings = cfg.model.copy()
    if cfg.get("data_preprocessor") is not None:
        settings.setdefault("data_preprocessor", cfg.data_preprocessor)  # as mmengine's Runner does
    # Not on the meta device, although it is enough for names and shapes: mmpretrain's ResNet asks for values.
    with trial(f"the model of {cfg.filename} cannot be built", default_scope(cfg)):
        return MODELS.build(settings)


def _start(cfg: Config) -> str | None:
    """The checkpoint that training starts from; None if there is none."""
    if not cfg.get("resume") or cfg.get("load_from") is not None:
        return cfg.get("load_from")
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    try:
        return latest_checkpoint(cfg.work_dir, hook.get("out_dir"))
    except CheckpointError as error:
        raise PreflightError(f"--resume: {error}") from error


def _pretrained(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, module, path) for the local checkpoints that modules are initialised with."""
    init = getattr(module, "init_cfg", None)
    for node in init if isinstance(init, list | tuple) else [init]:
        if isinstance(node, dict) and type_name(node) in ("Pretrained", "PretrainedInit"):
            if is_local(node.get("checkpoint")):
                yield name, module, node["checkpoint"]
            if node is init:
                return  # mmengine does not initialise what is inside, then
    for child_name, child in module.named_children():
        yield from _pretrained(child, f"{name}.{child_name}")


def _read(path: str, setting: str, read: Callable[..., dict] = read_checkpoint) -> dict:
    try:
        return read(os.path.expanduser(path), map_location="cpu")
    except (CheckpointError, OSError) as error:
        raise PreflightError(f"{setting}: {error}") from error


def _weights(checkpoint: dict) -> dict[str, Tensor]:
    source = checkpoint.get("state_dict", checkpoint)
    return {re.sub(r"^module\.", "", name): value for name, value in source.items() if isinstance(value, Tensor)}


def _check_that_some_arrive(module: nn.Module, load: Callable[[], object], complaint: str, cfg: Config) -> None:
    """Check that ``load`` writes some matrix or kernel into a module; upstream only logs what does not fit.

    What it writes is seen in the module, which is filled with NaN, as names and layouts may be translated on the way.
    Single numbers and biases say nothing: they may fit any network.
    """
    values = [value for value in chain(module.parameters(), module.buffers()) if value.is_floating_point()]
    telling = [parameter for parameter in module.parameters() if parameter.dim() > 1] or values
    for value in values:
        value.data = torch.full_like(value, math.nan)
    with trial(f"{complaint}: cannot be loaded", default_scope(cfg)):
        load()
    if telling and all(value.isnan().all() for value in telling):
        raise PreflightError(
            f"{complaint}: none of its weights fits, by name and shape, and the training would start from random ones; "
            "expected weights of the same architecture (those of a part of a model: set prefix in init_cfg)"
        )


def _check_optimizer(model: nn.Module, cfg: Config, state: dict | None) -> None:
    settings = cfg.optim_wrapper
    if cfg.get("runner_type") is not None or not ({"optimizer", "constructor"} & set(settings)):
        return  # other runners build it in their own way
    if type_name(settings.get("optimizer") or {}) == "ZeroRedundancyOptimizer":
        return  # it needs its other processes
    with trial("optim_wrapper cannot be built", default_scope(cfg)):
        wrapper = build_optim_wrapper(model, settings)
    if state is not None:
        with trial("--resume: the optimizer cannot go on from the checkpoint's state", default_scope(cfg)):
            wrapper.load_state_dict(state)


def _check_that_views_merge(model: BaseTTAModel) -> None:
    merges_boxes = inherits(type(model), "mmdet.models.test_time_augs.det_tta.DetTTAModel", "_merge_single_sample")
    if merges_boxes and getattr(model.module, "with_mask", False):
        raise PreflightError(
            "--tta: mmdet's DetTTAModel merges boxes, and no masks, but this model gives masks; leave out --tta"
        )


def _check_weights(model: nn.Module, weights: dict[str, Tensor], complaint: str) -> None:
    own = model.state_dict()
    reshaped = [name for name, value in weights.items() if name in own and value.shape != own[name].shape]
    try:
        # The model's own loading, as it may translate names, which a comparison of names would not.
        found = model.load_state_dict({k: v for k, v in weights.items() if k not in reshaped}, strict=False)
    except RuntimeError as error:
        raise PreflightError(f"{complaint}: {error}") from error
    may_differ = re.compile(r"data_preprocessor\..*|.*num_batches_tracked").fullmatch
    kinds = {
        "missing keys": [name for name in found.missing_keys if name not in reshaped and not may_differ(name)],
        "unexpected keys": [name for name in found.unexpected_keys if not may_differ(name)],
        "weights of another shape": [
            f"{name}, {tuple(weights[name].shape)} in the checkpoint, {tuple(own[name].shape)} in the model"
            for name in reshaped
        ],
    }
    faults = [f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds.items() if names]
    if faults:
        raise PreflightError(f"{complaint}: {', '.join(faults)}; expected weights of the same architecture")
