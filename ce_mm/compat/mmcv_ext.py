"""``mmcv._ext``, mmcv's compiled operators, provided over torchvision where an installation of mmcv lacks them.

torchvision ships the three operators that Mask R-CNN uses (NMS, RoIAlign forward and backward) for CPU and CUDA, so a
detector trains without compiling mmcv. Every other operator of mmcv raises, when called, an error that names it.
The functions below have the names, arguments and conventions of mmcv's C++ interface.
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
import torch
import torchvision
from mmengine.logging import print_log

NAME = "mmcv._ext"
HOW_TO_COMPILE = (
    "To get mmcv's own, install a full (not lite) mmcv whose compiled operators fit this PyTorch and CUDA, "
    "as a ready wheel or built from source with MMCV_WITH_OPS=1."
)


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


@functools.cache
def _say_once() -> None:
    """Note in the log, when the first operator runs, whose operators these are."""
    print_log(
        "This mmcv has no compiled operators (mmcv._ext): torchvision's stand in for nms and roi_align, plain PyTorch "
        f"for soft_nms; any other operator raises an error when it is called. {HOW_TO_COMPILE}",
        logger="current",
        level=logging.INFO,
    )


class _TorchvisionLoader(importlib.abc.Loader):
    """Fills the module. mmcv and mmengine look for a spec with a loader to learn whether the operators exist."""

    def exec_module(self, module: ModuleType) -> None:
        operators = (nms, softnms, roi_align_forward, roi_align_backward)
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


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, offset: int) -> torch.Tensor:
    """Drop each box whose IoU with a kept box of higher score is above the threshold.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2, floating point.
        scores: (N,), floating point.
        iou_threshold: compared with ``>``, in float32 as mmcv does.
        offset: 0 or 1; a box is x2 - x1 + offset wide.

    Returns:
        Indices of the kept boxes (K,), int64, by falling score; of equal scores the earlier box counts as higher.
    """
    _say_once()
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return torchvision.ops.nms(_with_offset(_at_least_float32(boxes), offset), _at_least_float32(scores), threshold)


def softnms(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    dets: torch.Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> torch.Tensor:
    """Soft-NMS (Bodla et al., 2017): lower the scores of boxes that overlap one of higher score, drop those near zero.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2.
        scores: (N,).
        dets: (N, 5), its first K rows are overwritten with the kept boxes and their lowered scores.
        iou_threshold: for methods 0 and 1, boxes with an IoU of at least this are lowered.
        sigma: width of the Gaussian of method 2.
        min_score: boxes whose score falls below are dropped.
        method: score times 0 (method 0), times 1 - IoU (method 1), or times exp(-IoU² / sigma) (method 2).
        offset: 0 or 1; a box is x2 - x1 + offset wide.

    Returns:
        Indices of the kept boxes (K,), int64, in the order in which they were kept.
    """
    _say_once()
    inflated = _with_offset(boxes, offset)
    scores = scores.clone()
    left = torch.arange(len(boxes), device=boxes.device)
    kept: list[int] = []
    while len(left) > 0:
        best = left[scores[left].argmax()]
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], scores[best]
        kept.append(best.item())

        left = left[left != best]
        # Two boxes without area have the IoU 0 / 0, and overlap in nothing.
        iou = torchvision.ops.box_iou(inflated[best][None], inflated[left])[0].nan_to_num(0.0)
        if method == 2:
            scores[left] *= torch.exp(-(iou**2) / sigma)
        else:
            scores[left] *= torch.where(iou >= iou_threshold, 1 - iou if method == 1 else 0.0, 1.0)
        left = left[scores[left] >= min_score]
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def roi_align_forward(
    input: torch.Tensor,
    rois: torch.Tensor,
    output: torch.Tensor,
    argmax_y: torch.Tensor,
    argmax_x: torch.Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Overwrite ``output`` with the average-pooled regions of ``input``.

    Args:
        input: (N, C, H, W), floating point; float16 and bfloat16 are computed in float32.
        rois: (K, 5) as index of the picture, x1, y1, x2, y2, in units of 1 / spatial_scale pixels of ``input``.
        output: (K, C, aligned_height, aligned_width), the dtype of ``input``.
        argmax_y, argmax_x: of max pooling, unused here.
        aligned_height, aligned_width: cells of a region.
        spatial_scale: pixels of ``input`` per unit of ``rois``.
        sampling_ratio: samples per side of a cell; 0 or less takes as many as the cell has pixels, rounded up.
        pool_mode: 1 (average).
        aligned: whether pixel centres lie at half-integer coordinates, and a region may be narrower than one pixel.

    Raises:
        NotImplementedError: for pool_mode 0 (max), which torchvision lacks.
    """
    _check_average(pool_mode)
    _say_once()
    size = (aligned_height, aligned_width)
    output.copy_(_roi_align(input, rois, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: torch.Tensor,
    rois: torch.Tensor,
    argmax_y: torch.Tensor,
    argmax_x: torch.Tensor,
    grad_input: torch.Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Overwrite ``grad_input`` (N, C, H, W) with the gradient; see :func:`roi_align_forward` for the other arguments.

    torchvision's public interface to its backward pass is autograd, which costs one more forward pass (about a fifth of
    the backward pass). The operator is linear in its input, so any input of the right shape does.
    """
    _check_average(pool_mode)
    size = (aligned_height, aligned_width)
    with torch.enable_grad():
        anywhere = torch.zeros_like(grad_input).requires_grad_()
        output = _roi_align(anywhere, rois, size, spatial_scale, sampling_ratio, aligned)
        (gradient,) = torch.autograd.grad(output, anywhere, grad_output.to(output.dtype))
    grad_input.copy_(gradient)


def _roi_align(
    input: torch.Tensor,
    rois: torch.Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    input = _at_least_float32(input)
    return torchvision.ops.roi_align(input, rois.to(input.dtype), size, spatial_scale, sampling_ratio, aligned)


def _check_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            "RoIAlign with pool_mode='max': this mmcv has no compiled operators, and torchvision, which stands in, "
            f"only averages; take pool_mode='avg'. {HOW_TO_COMPILE}"
        )


def _with_offset(boxes: torch.Tensor, offset: int) -> torch.Tensor:
    """Boxes whose plain width x2 - x1 is mmcv's x2 - x1 + offset."""
    return boxes + boxes.new_tensor([0, 0, offset, offset])


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """float16 and bfloat16 as float32: coordinates need the bits, and torchvision lacks some such kernels."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
