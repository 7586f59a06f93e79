"""Checkpoints with random weights, as trainings of the package's configs leave them."""
from pathlib import Path

import torch
from mmengine.registry import MODELS, DefaultScope

from ce_mm.launching.config import read_config


def write_checkpoint(config: str, path: Path, **meta: object) -> None:
    """Random weights of a config's model, as a training leaves them."""
    cfg = read_config(config)
    if (cfg.model.backbone.get("init_cfg") or {}).get("type") == "Pretrained":
        cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        weights = MODELS.build(cfg.model).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=weights, meta=dict(dataset_meta=meta)), path)
