"""The arguments that all backbones with CE have: ``norm_cfg``, ``ce_cfg`` and ``ce_stages``."""
import inspect
from collections.abc import Sequence
from typing import Any

from mmengine.registry import MODELS

from ce_mm.layers import CENorm
from ce_mm.layers.norms import norm_names

_NAMES = tuple(inspect.signature(CENorm).parameters)[1:]  # without num_features, which the backbone knows


def norm_arguments(norm_cfg: dict | None) -> dict[str, Any]:
    """The config of the network's norm, BN by default.

    Raises:
        ValueError: mmcv knows no such norm.
    """
    norm_cfg = dict(type="BN") if norm_cfg is None else norm_cfg
    if _class_of(norm_cfg) is None:
        raise ValueError(
            f"norm_cfg must be the config of a norm that mmcv can build, got {norm_cfg!r}; set for example "
            "dict(type='BN'), dict(type='SyncBN') or dict(type='GN', num_groups=8)"
        )
    return norm_cfg


def ce_arguments(ce_cfg: dict | None, defaults: dict[str, Any], name: str = "ce_cfg") -> dict[str, Any]:
    """CENorm's arguments.

    Args:
        ce_cfg: what is given to the backbone.
        defaults: what holds where it says nothing, with the network's norm.
        name: as what it is given.

    Raises:
        ValueError: there is something else in it.
    """
    ce_cfg = {} if ce_cfg is None else ce_cfg
    if not isinstance(ce_cfg, dict) or not set(ce_cfg) <= set(_NAMES):
        raise ValueError(f"{name} must be a dict of CENorm's arguments, {', '.join(_NAMES)}, got {ce_cfg!r}")
    arguments = defaults | ce_cfg
    norm, kind = arguments["norm"], _class_of(arguments["norm"])
    if kind is None or norm["type"] in norm_names():
        return arguments
    return arguments | dict(norm=norm | dict(type=kind))  # CENorm does not look into mmengine's registry


def check_stages(ce_stages: Sequence[bool], count: int) -> None:
    """Check which of a network's ``count`` stages have CE.

    Raises:
        ValueError: it does not say True or False of each.
    """
    is_list = isinstance(ce_stages, (tuple, list))
    if not is_list or len(ce_stages) != count or not all(stage in (True, False) for stage in ce_stages):
        raise ValueError(f"ce_stages must say True or False for each of the {count} stages, got {ce_stages!r}")


def _class_of(norm: object) -> type | None:
    """The class that a norm's config stands for in mmcv's build_norm_layer, if it is one."""
    kind = norm.get("type") if isinstance(norm, dict) else None
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    return kind if isinstance(kind, type) else None
