"""A config's network with the weights of a checkpoint, which is read once, from anywhere."""
import os
import re

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ce_mm.checkpoints.reading import read_checkpoint
from ce_mm.launching.config import PreflightError, default_scope, is_local, trial


def load_network(cfg: Config, path: str, device: str = "cpu") -> tuple[nn.Module, dict]:
    """The network of a config, and what a checkpoint knows of the data.

    Args:
        cfg: of :func:`~ce_mm.launching.config.read_config`.
        path: checkpoint whose weights fit it; anything that mmengine loads.
        device: where to compute.

    Returns:
        The network in eval mode. What the checkpoint records of the data set, by names in small letters; nothing where
        it does not name the ``classes``.

    Raises:
        ValueError: config, checkpoint or device cannot be used; the message names which, and why.
        OSError: there is no checkpoint to be had at that address.
    """
    with trial(f"the device {device!r} cannot be used; expected cpu, or cuda with a GPU", None):
        torch.empty(0, device=device)
    if "type" not in (cfg.get("model") or {}):
        raise PreflightError(f"{cfg.filename} has no model with a type; expected the config of a network")
    if is_local(path):
        checkpoint = read_checkpoint(os.path.expanduser(path))
    else:
        checkpoint = CheckpointLoader.load_checkpoint(path, map_location="cpu", logger="silent")
    model = build_model(cfg)
    load_weights(model, checkpoint, f"{path} does not fit the model of {cfg.filename}")
    return model.to(device).eval(), _of_data(checkpoint)


def build_model(cfg: Config) -> nn.Module:
    """The model of a config, on the CPU, as mmengine's Runner would build it.

    Raises:
        PreflightError: it cannot be built.
    """
    settings = cfg.model.copy()
    if cfg.get("data_preprocessor") is not None:
        settings.setdefault("data_preprocessor", cfg.data_preprocessor)  # as mmengine's Runner does
    # Not on the meta device, although it is enough for names and shapes: mmpretrain's ResNet asks for values.
    with trial(f"the model of {cfg.filename} cannot be built", default_scope(cfg)):
        return MODELS.build(settings)


def weights_by_name(checkpoint: dict) -> dict[str, Tensor]:
    """The tensors of a checkpoint, under ``state_dict`` or directly, without ``module.`` in front."""
    source = checkpoint.get("state_dict", checkpoint)
    return {re.sub(r"^module\.", "", name): value for name, value in source.items() if isinstance(value, Tensor)}


def load_weights(model: nn.Module, checkpoint: dict, complaint: str) -> None:
    """Load the weights of a checkpoint into a model.

    Raises:
        PreflightError: they are not all the model's, or not all that it has; ``complaint``, and which.
    """
    weights, own = weights_by_name(checkpoint), model.state_dict()
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


def _of_data(checkpoint: dict) -> dict:
    meta = checkpoint.get("meta")
    if isinstance(meta, dict):  # mmdet before version 3 has no dataset_meta, and writes in capitals
        meta = meta.get("dataset_meta", meta)
    known = {str(key).lower(): value for key, value in meta.items()} if isinstance(meta, dict) else {}
    return {} if known.get("classes") is None else known
