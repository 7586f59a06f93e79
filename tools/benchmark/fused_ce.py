"""Our CE from norm to ReLU, as one layer: the layer under test.

It is ce_mm's own CENorm. Where OpenMMLab is not installed, on a bare GPU machine for example, stand-ins take the place
of the two names that CENorm has from there, neither of which runs while it is measured.
"""
import importlib.util
import sys
from types import ModuleType

from torch import Tensor, nn

import ce_mm  # noqa: F401 - its registration must not meet the stand-ins


def _module(name: str, **names: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(names)
    return module


def _build_norm_layer(cfg: dict, num_features: int) -> tuple[str, nn.Module]:
    if cfg != dict(type="BN"):
        raise ValueError(f"without mmcv the benchmark's base norm is dict(type='BN'), got {cfg!r}")
    return "bn", nn.BatchNorm2d(num_features)


class _Registry:
    def register_module(self, *args: object, **kwargs: object) -> None:
        """Nothing looks names up here."""


if any(importlib.util.find_spec(name) is None for name in ("mmengine", "mmcv")):
    sys.modules |= {
        "mmengine": _module("mmengine", __version__="0.10"),
        "mmengine.registry": _module("mmengine.registry", MODELS=_Registry()),
        "mmcv": _module("mmcv", __version__="2.0"),
        "mmcv.cnn": _module("mmcv.cnn", build_norm_layer=_build_norm_layer),
    }

from ce_mm.layers import CENorm  # noqa: E402


class FusedCE(nn.Module):
    """BN, CE, the residual add and the ReLU in the passes of one layer."""

    def __init__(self, channels: int, group_size: int = 16) -> None:
        super().__init__()
        self.ce = CENorm(channels, group_size=group_size)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """ReLU(CE(BN(x)) + residual), of x's shape, type and memory format."""
        return self.ce(x, residual, relu=True)
