"""``mmcv._ext``, mmcv's compiled operators, provided over torchvision and PyTorch where an installation lacks them.

Detectors train without compiling mmcv, on CPU and CUDA. The files beside hold the operators, an idea each, under the
names, with the arguments and the conventions of mmcv's C++ interface. Every operator that is not there raises, when
called, an error that names it.
"""
import functools
import importlib.abc
import importlib.util
import logging
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

import mmcv
from mmengine.logging import print_log

from ce_mm.compat.mmcv_ext import (
    boxes,
    carafe,
    compilers,
    deformable_attention,
    deformable_convolution,
    focal_loss,
    masked_convolution,
    roi_align,
    roi_pool,
    synchronised_norm,
)

NAME = "mmcv._ext"
HOW_TO_COMPILE = (
    "To get mmcv's own, install a full (not lite) mmcv whose compiled operators fit this PyTorch and CUDA, "
    "as a ready wheel or built from source with MMCV_WITH_OPS=1."
)
OPERATORS = (
    boxes.bbox_overlaps,
    boxes.nms,
    boxes.nms_match,
    boxes.softnms,
    carafe.carafe_forward,
    carafe.carafe_backward,
    carafe.carafe_naive_forward,
    carafe.carafe_naive_backward,
    deformable_attention.ms_deform_attn_forward,
    deformable_attention.ms_deform_attn_backward,
    deformable_convolution.deform_conv_forward,
    deformable_convolution.deform_conv_backward_input,
    deformable_convolution.deform_conv_backward_parameters,
    deformable_convolution.modulated_deform_conv_forward,
    deformable_convolution.modulated_deform_conv_backward,
    focal_loss.sigmoid_focal_loss_forward,
    focal_loss.sigmoid_focal_loss_backward,
    focal_loss.softmax_focal_loss_forward,
    focal_loss.softmax_focal_loss_backward,
    masked_convolution.masked_im2col_forward,
    masked_convolution.masked_col2im_forward,
    roi_align.roi_align_forward,
    roi_align.roi_align_backward,
    roi_pool.roi_pool_forward,
    roi_pool.roi_pool_backward,
    synchronised_norm.sync_bn_forward_mean,
    synchronised_norm.sync_bn_forward_var,
    synchronised_norm.sync_bn_forward_output,
    synchronised_norm.sync_bn_backward_param,
    synchronised_norm.sync_bn_backward_data,
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
        vars(module).update({operator.__name__: _announced(operator) for operator in OPERATORS})
        vars(module).update({answer.__name__: answer for answer in (
            compilers.get_compiler_version, compilers.get_compiling_cuda_version)}, __getattr__=_missing_operator)


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
