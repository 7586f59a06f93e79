"""``mmcv._ext``, mmcv's compiled operators, provided over torchvision where an installation of mmcv lacks them.

torchvision ships the three operators that Mask R-CNN uses (NMS, RoIAlign forward and backward) for CPU and CUDA, so a
detector trains without compiling mmcv. Every other operator of mmcv raises, when called, an error that names it.
The functions in the files beside have the names, arguments and conventions of mmcv's C++ interface.
"""
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

import mmcv

from ce_mm.compat.mmcv_ext import boxes, regions
from ce_mm.compat.mmcv_ext.notice import HOW_TO_COMPILE

NAME = "mmcv._ext"


def install_mmcv_ext() -> bool:
    """Provide ``mmcv._ext`` unless mmcv has the compiled one, even a broken one.

    Returns:
        Whether torchvision's operators stand in for mmcv's.
    """
    if NAME in sys.modules or importlib.util.find_spec(NAME) is not None:
        return isinstance(getattr(sys.modules.get(NAME), "__loader__", None), _TorchvisionLoader)

    spec = ModuleSpec(NAME, _TorchvisionLoader(), origin="torchvision")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = mmcv._ext = module
    return True


class _TorchvisionLoader(importlib.abc.Loader):
    """Fills the module. mmcv and mmengine look for a spec with a loader to learn whether the operators exist."""

    def exec_module(self, module: ModuleType) -> None:
        operators = (boxes.nms, boxes.softnms, regions.roi_align_forward, regions.roi_align_backward)
        vars(module).update({operator.__name__: operator for operator in operators}, __getattr__=_missing_operator)


def _missing_operator(name: str) -> Callable[..., NoReturn]:
    if name.startswith("_"):  # Python's own questions (__path__, __file__, ...), never an operator
        raise AttributeError(f"module '{NAME}' has no attribute '{name}'")

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"{NAME}.{name}: this mmcv has no compiled operators, and torchvision, which stands in for some of them, "
            f"has no {name}. {HOW_TO_COMPILE}"
        )

    return missing
