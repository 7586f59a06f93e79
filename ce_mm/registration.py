"""What ``import ce_mm`` does: put CE's names into mmengine's registries, and make OpenMMLab work here.

Nothing of it is imported for that: everything waits until somebody imports the part of a library that it concerns. The
layers, on torch alone, are registered as they are, since mmcv asks a norm for its class; of what builds on the
libraries, a function is registered that imports it when a config asks for it, and says what an incomplete installation
lacks.
"""
import importlib
from collections.abc import Callable
from typing import Any

from ce_mm.compat.after_import import after_import

#: The registry, the module, and the names by which configs reach for what is in it.
PIECES = (
    ("MODELS", "ce_mm.backbones", ("CEResNet", "CEMobileNetV2", "CEShuffleNetV2", "CEVGG")),
    ("HOOKS", "ce_mm.hooks", ("ChannelInhibitionHook", "NonFiniteHook", "SafeCheckpointHook", "StepSeedsHook")),
    ("TRANSFORMS", "ce_mm.transforms", ("LoadImage",)),
)


def register() -> None:
    """Do what is to be done of each library as soon as it is there."""
    after_import("mmengine.registry", register_names)
    after_import("mmengine.runner.checkpoint", _make_loading_safe)
    after_import("mmengine.analysis.complexity_analysis", _count_operators)
    after_import("mmcv", _install_mmcv_ext)


def register_names() -> None:
    """Put all names into mmengine's root registries, where every OpenMMLab library finds them."""
    from mmengine import registry as registries

    from ce_mm.layers import CENorm, SwitchableNorm

    registries.MODELS.register_module("CE", module=CENorm)
    registries.MODELS.register_module("SN", module=SwitchableNorm)
    for registry, module, names in PIECES:
        for name in names:
            getattr(registries, registry).register_module(name, module=_builder(module, name))


def _builder(module: str, name: str) -> Callable[..., Any]:
    def build(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    build.__module__, build.__name__ = module, name  # as mmengine's log names what it builds
    return build


def _make_loading_safe() -> None:
    from ce_mm.compat.safe_load import make_loading_safe

    make_loading_safe()


def _count_operators() -> None:
    from ce_mm.compat.complexity_analysis import count_operators

    count_operators()


def _install_mmcv_ext() -> None:
    from ce_mm.compat.mmcv_ext import install_mmcv_ext

    install_mmcv_ext()
