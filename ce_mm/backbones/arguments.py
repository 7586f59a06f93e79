"""The arguments that all backbones with CE have: ``norm_cfg`` and ``ce_cfg``."""
import inspect
from typing import Any

from mmengine.registry import MODELS

from ce_mm.layers import CENorm

_NAMES = tuple(inspect.signature(CENorm).parameters)[1:]  # without num_features, which the backbone knows


def norm_arguments(norm_cfg: dict | None) -> dict[str, Any]:
    """The config of the network's norm, BN by default.

    Raises:
        ValueError: mmcv knows no such norm.
    """
    norm_cfg = dict(type="BN") if norm_cfg is None else norm_cfg
    kind = norm_cfg.get("type") if isinstance(norm_cfg, dict) else None
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(None) as registry:  # as mmcv's build_norm_layer
            kind = registry.get(kind)
    if not isinstance(kind, type):
        raise ValueError(
            f"norm_cfg must be the config of a norm that mmcv can build, got {norm_cfg!r}; set for example "
            "dict(type='BN'), dict(type='SyncBN') or dict(type='GN', num_groups=8)"
        )
    return norm_cfg


def ce_arguments(ce_cfg: dict | None, name: str = "ce_cfg") -> dict[str, Any]:
    """CENorm's arguments, none by default.

    Args:
        ce_cfg: what is given to the backbone.
        name: as what it is given.

    Raises:
        ValueError: there is something else in it.
    """
    ce_cfg = {} if ce_cfg is None else ce_cfg
    if not isinstance(ce_cfg, dict) or not set(ce_cfg) <= set(_NAMES):
        raise ValueError(f"{name} must be a dict of CENorm's arguments, {', '.join(_NAMES)}, got {ce_cfg!r}")
    return ce_cfg
