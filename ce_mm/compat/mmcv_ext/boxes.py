"""Operators on boxes: how much they overlap, and which of them to keep.

Of all: boxes are x1, y1, x2, y2, floating point, and x2 - x1 + offset wide, for an ``offset`` of 0 or 1. Thresholds are
compared in float32, as mmcv does.
"""
import torch
import torchvision
from torch import Tensor

from ce_mm.compat.mmcv_ext.numerics import at_least_float32


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Drop each of the boxes (N, 4) whose IoU with a kept box of higher score (N,) is above the threshold.

    Returns:
        Indices of the kept boxes (K,), int64, by falling score; of equal scores the earlier box counts as higher.
    """
    inflated = _with_offset(at_least_float32(boxes), offset)
    return torchvision.ops.nms(inflated, at_least_float32(scores), _in_float32(iou_threshold))


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al., 2017): lower the scores of boxes that overlap one of higher score, drop those near zero.

    Args:
        boxes, scores: (N, 4) and (N,).
        dets: (N, 5), its first K rows are overwritten with the kept boxes and their lowered scores.
        iou_threshold: for methods 0 and 1, boxes with an IoU of at least this are lowered.
        sigma: width of the Gaussian of method 2.
        min_score: boxes whose score falls below are dropped.
        method: score times 0 (method 0), times 1 - IoU (method 1), or times exp(-IoU² / sigma) (method 2).
        offset: see above.

    Returns:
        Indices of the kept boxes (K,), int64, in the order in which they were kept.
    """
    inflated, scores = _with_offset(boxes, offset), scores.clone()
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


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of boxes with scores (N, 5): each kept box with those whose IoU with it is at least the threshold.

    Returns:
        Indices, in each group and among the groups' first boxes by falling score.
    """
    dets = at_least_float32(dets)
    left = dets[:, 4].argsort(descending=True, stable=True)
    groups: list[list[int]] = []
    while len(left) > 0:
        best, left = left[0], left[1:]
        iou = torchvision.ops.box_iou(dets[best, None, :4], dets[left, :4])[0]
        suppressed = iou >= _in_float32(iou_threshold)
        groups.append([best.item(), *left[suppressed].tolist()])
        left = left[~suppressed]
    return groups


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Overwrite ``ious`` with the share of two boxes' intersection.

    Args:
        bboxes1, bboxes2: (M, 4) and (N, 4); N = M if ``aligned``.
        ious: (M,) if ``aligned``, of each box with its partner; (M, N) otherwise, of each box with every other.
        mode: share in the union (0) or in the box of ``bboxes1`` (1).
        aligned, offset: see above.
    """
    a, b = (_with_offset(at_least_float32(boxes), offset) for boxes in (bboxes1, bboxes2))
    a = a if aligned else a[:, None]
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    intersection = sides.clamp_min(0).prod(-1)
    area_a, area_b = ((boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (a, b))
    whole = area_a if mode == 1 else area_a + area_b - intersection
    ious.copy_(intersection / whole.clamp_min(offset))


def _with_offset(boxes: Tensor, offset: int) -> Tensor:
    """Boxes whose plain width x2 - x1 is mmcv's x2 - x1 + offset."""
    return boxes + boxes.new_tensor([0, 0, offset, offset])


def _in_float32(threshold: float) -> float:
    return torch.tensor(threshold, dtype=torch.float32).item()
