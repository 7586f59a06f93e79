"""``mmcv._ext``, mmcv's compiled operators, provided over torchvision and PyTorch where an installation lacks them.

Detectors train without compiling mmcv, on CPU and CUDA. The files beside hold the operators, an idea each, under the
names, with the arguments and the conventions of mmcv's C++ interface: every public function there is one. Every
operator that is not there raises, when called, an error that names it.
"""
import functools
import importlib.abc
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

import mmcv
from mmengine.logging import print_log

NAME = "mmcv._ext"
FILES = (
    "boxes", "carafe", "deformable_attention", "deformable_convolution", "focal_loss", "masked_convolution",
    "roi_align", "roi_pool", "synchronised_norm",
)  # fmt: skip
HOW_TO_COMPILE = (
    "To get mmcv's own, install a full (not lite) mmcv whose compiled operators fit this PyTorch and CUDA, "
    "as a ready wheel or built from source with MMCV_WITH_OPS=1."
)


def install_mmcv_ext() -> bool:
    """Provide ``mmcv._ext`` unless mmcv has the compiled one, even a broken one.

    Returns:
        Whether these operators stand in for mmcv's.
    """
    if NAME in sys.modules or importlib.util.find_spec(NAME) is not None:
        return isinstance(getattr(sys.modules.get(NAME), "__loader__", None), _Loader)

    spec = ModuleSpec(NAME, _Loader(), origin=__name__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = mmcv._ext = module
    return True


class _Loader(importlib.abc.Loader):
    """Fills the module. mmcv and mmengine look for a spec with a loader to learn whether the operators exist."""

    def exec_module(self, module: ModuleType) -> None:
        # mmcv's reports of the environment ask what compiled it, and say this where mmcv._ext is absent.
        for question in ("get_compiler_version", "get_compiling_cuda_version"):
            setattr(module, question, lambda: "n/a")
        for operator in _operators():
            setattr(module, operator.__name__, _announced(operator))
        module.__getattr__ = _missing_operator


def _operators() -> Iterator[Callable]:
    for file in FILES:
        module = importlib.import_module(f"{__name__}.{file}")
        for name, value in inspect.getmembers(module, inspect.isfunction):
            if value.__module__ == module.__name__ and not name.startswith("_"):
                yield value


def _announced(operator: Callable) -> Callable:
    """The operator, which notes in the log, when the first of all runs, whose operators these are."""

    @functools.wraps(operator)
    def announced(*args: object, **kwargs: object) -> object:
        _say_once()
        return operator(*args, **kwargs)

    return announced


@functools.cache
def _say_once() -> None:
    print_log(
        "This mmcv has no compiled operators (mmcv._ext): torchvision and plain PyTorch stand in for some of them; any "
        f"other operator raises an error when it is called. {HOW_TO_COMPILE}",
        logger="current",
        level=logging.INFO,
    )


def _missing_operator(name: str) -> Callable[..., NoReturn]:
    if name.startswith("_"):  # Python's own questions (__path__, __file__, ...), never an operator
        raise AttributeError(f"module '{NAME}' has no attribute '{name}'")

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"{NAME}.{name}: this mmcv has no compiled operators, and what stands in for some of them has no {name}. "
            f"{HOW_TO_COMPILE}"
        )

    return missing
