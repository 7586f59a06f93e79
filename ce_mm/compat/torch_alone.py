"""CE's layers with torch alone, for benchmarks and studies on a machine that has nothing else.

Stand-ins take the place of the two names that the layers have from OpenMMLab: the registry that nobody reads there, and
the function that builds a base norm. Neither runs while a network does.
"""
import importlib.util
import sys
from functools import cache
from types import ModuleType
from typing import Any

from torch import nn

import ce_mm  # noqa: F401 - its registration must not meet the stand-ins


class _Registry:
    def __init__(self) -> None:
        self.modules: dict[str, type[nn.Module]] = {"BN": nn.BatchNorm2d, "GN": nn.GroupNorm, "IN": nn.InstanceNorm2d}

    def register_module(self, name: str, module: type[nn.Module]) -> None:
        self.modules[name] = module


_MODELS = _Registry()


def _build_norm_layer(cfg: dict, num_features: int) -> tuple[str, nn.Module]:
    arguments: dict[str, Any] = dict(cfg)
    kind = _MODELS.modules.get(arguments.pop("type"))
    if kind is None:
        raise ValueError(f"without mmcv a norm must be one of {', '.join(_MODELS.modules)}, got {cfg!r}")
    size = "num_channels" if kind is nn.GroupNorm else "num_features"
    return "bn", kind(**{size: num_features}, **arguments)


def _module(name: str, **names: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(names)
    return module


@cache
def stand_in() -> None:
    """Put the stand-ins where mmengine or mmcv is missing; to be called before ``ce_mm.layers`` is imported."""
    if all(importlib.util.find_spec(name) is not None for name in ("mmengine", "mmcv")):
        return
    sys.modules |= {
        "mmengine": _module("mmengine", __version__="0.10"),
        "mmengine.registry": _module("mmengine.registry", MODELS=_MODELS),
        "mmcv": _module("mmcv", __version__="2.0"),
        "mmcv.cnn": _module("mmcv.cnn", build_norm_layer=_build_norm_layer),
    }
