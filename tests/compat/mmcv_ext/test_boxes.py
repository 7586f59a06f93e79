"""Overlaps, NMS and soft-NMS behind mmcv's interface equal torchvision's and the plain formulas."""
import math

import mmcv.ops
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from ce_mm.compat.mmcv_ext import boxes as operators

# --- NMS --------------------------------------------------------------------------------------------------------------

# Quarters are exact in float32, so that the plain loop and the kernel see the very same IoU.
quarters = st.integers(0, 60).map(lambda n: n / 4)
box = st.tuples(quarters, quarters, quarters, quarters).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
scored_boxes = st.lists(st.tuples(box, st.sampled_from([0.9, 0.75, 0.5, 0.3, 0.2])), max_size=14)
# 0.3 and 0.7 are not float32 numbers: an IoU of exactly 3/10 must still not exceed a threshold of 0.3.
thresholds = st.sampled_from([0.0, 0.25, 0.3, 1 / 3, 0.5, 0.7, 1.0])


def as_tensors(items) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([b for b, _ in items]).reshape(-1, 4), torch.tensor([s for _, s in items])


def plain_iou(a: np.ndarray, b: np.ndarray, offset: int) -> np.float32:
    """IoU of two boxes as mmcv defines it, in the dtype of the boxes; 0 where neither has an area."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + offset, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + offset, 0)
    area_a, area_b = ((c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b))
    union = area_a + area_b - width * height
    return width * height / union if union > 0 else np.float32(0)


def plain_nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, offset: int) -> list[int]:
    boxes, kept = boxes.numpy(), []
    for i in np.argsort(-scores.numpy(), kind="stable"):
        if all(plain_iou(boxes[i], boxes[k], offset) <= np.float32(threshold) for k in kept):
            kept.append(int(i))
    return kept


@settings(max_examples=300)
@given(items=scored_boxes, threshold=thresholds, offset=st.sampled_from([0, 1]))
def test_nms_equals_the_plain_loop(items, threshold, offset):
    boxes, scores = as_tensors(items)
    expected = plain_nms(boxes, scores, threshold, offset)
    assert operators.nms(boxes, scores, iou_threshold=threshold, offset=offset).tolist() == expected
    dets, kept = mmcv.ops.nms(boxes, scores, threshold, offset)
    assert kept.tolist() == expected
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


def test_nms_without_offset_is_torchvisions():
    torch.manual_seed(0)
    corners = torch.rand(300, 2) * 100
    boxes, scores = torch.cat([corners, corners + torch.rand(300, 2) * 40], 1), torch.rand(300)
    assert torch.equal(operators.nms(boxes, scores, 0.5, 0), torchvision.ops.nms(boxes, scores, 0.5))


def test_an_iou_of_exactly_the_threshold_keeps_the_box():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 1.0], [7.0, 0.0, 10.0, 1.0]])  # IoU 3/10
    assert operators.nms(boxes, torch.tensor([0.9, 0.8]), 0.3, 0).tolist() == [0, 1]
    assert operators.nms(boxes, torch.tensor([0.9, 0.8]), 0.29, 0).tolist() == [0]


def test_the_offset_decides_between_boxes_that_touch():
    boxes = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])  # without area, or 1 and 2 pixels
    assert operators.nms(boxes, torch.tensor([0.9, 0.8]), 0.4, 0).tolist() == [0, 1]
    assert operators.nms(boxes, torch.tensor([0.9, 0.8]), 0.4, 1).tolist() == [0]


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_of_no_boxes_keeps_none(offset):
    kept = operators.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, offset)
    assert kept.shape == (0,) and kept.dtype == torch.int64
    dets, kept = mmcv.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, offset)
    assert dets.shape == (0, 5) and kept.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nms_takes_other_precisions(dtype):
    boxes = torch.tensor([[0, 0, 8, 8], [1, 0, 8, 8], [20, 20, 30, 30]], dtype=dtype)
    assert operators.nms(boxes, torch.tensor([0.5, 0.75, 0.25], dtype=dtype), 0.5, 0).tolist() == [1, 2]


@settings(max_examples=60)
@given(items=scored_boxes.filter(len), threshold=thresholds, data=st.data())
def test_batched_nms_suppresses_within_each_class_only(items, threshold, data):
    boxes, scores = as_tensors(items)
    scores = torch.linspace(1.0, 0.1, len(scores))  # without ties the order of the result is defined
    classes = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(items), max_size=len(items))))
    expected = []
    for c in range(3):
        index = (classes == c).nonzero()[:, 0]
        expected += index[plain_nms(boxes[index], scores[index], threshold, 0)].tolist()
    dets, kept = mmcv.ops.batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": threshold})
    assert kept.tolist() == sorted(expected)
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


# --- soft-NMS ---------------------------------------------------------------------------------------------------------


def plain_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset):
    """Figure 2 of the paper (Bodla et al., 2017), with its three rescoring functions, in float64."""
    boxes, scores = boxes.double().numpy(), dict(enumerate(scores.double().tolist()))
    kept = []
    while scores:
        best = max(scores, key=lambda i: (scores[i], -i))
        kept.append((best, scores.pop(best)))
        for i in list(scores):
            iou = float(plain_iou(boxes[best], boxes[i], offset))
            if method == "gaussian":
                scores[i] *= math.exp(-iou * iou / sigma)
            elif iou >= np.float32(threshold):
                scores[i] *= 1 - iou if method == "linear" else 0.0
            if scores[i] < min_score:
                del scores[i]
    return kept


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@settings(max_examples=60)
@given(items=scored_boxes.filter(len), threshold=st.sampled_from([0.25, 0.5]), seed=st.integers(0, 99))
def test_soft_nms_equals_the_published_formula(method, offset, items, threshold, seed):
    boxes, _ = as_tensors(items)
    scores = torch.rand(len(boxes), generator=torch.Generator().manual_seed(seed))
    expected = plain_soft_nms(boxes, scores, threshold, 0.5, 0.05, method, offset)
    dets, kept = mmcv.ops.soft_nms(boxes, scores, threshold, 0.5, 0.05, method, offset)
    assert kept.tolist() == [i for i, _ in expected]
    assert torch.equal(dets[:, :4], boxes[kept])
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, score in expected]), rtol=1e-4, atol=1e-6)


def test_soft_nms_of_no_boxes_keeps_none():
    dets, kept = mmcv.ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5) and kept.shape == (0,)


def test_soft_nms_leaves_the_callers_scores_alone():
    boxes, scores = torch.tensor([[0.0, 0.0, 8.0, 8.0], [1.0, 0.0, 8.0, 8.0]]), torch.tensor([0.9, 0.8])
    mmcv.ops.soft_nms(boxes, scores)
    assert torch.equal(scores, torch.tensor([0.9, 0.8]))


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_boxes_without_area_overlap_in_nothing(method):
    """The boxes in the documentation of mmcv's soft_nms, where all but the last are kept."""
    boxes = np.array([[4, 3, 5, 3], [4, 3, 5, 4], [3, 1, 3, 1], [3, 1, 3, 1], [3, 1, 3, 1], [3, 1, 3, 1]], np.float32)
    scores = np.array([0.9, 0.9, 0.5, 0.5, 0.4, 0.0], np.float32)
    dets, kept = mmcv.ops.soft_nms(boxes, scores, 0.6, sigma=0.5, method=method)
    assert kept.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(dets[:, 4], scores[:5])


def test_soft_nms_lowers_the_score_at_an_iou_of_exactly_the_threshold():
    boxes = torch.tensor([[0.0, 0.0, 8.0, 1.0], [0.0, 0.0, 4.0, 1.0]])  # IoU 1/2
    dets, _ = mmcv.ops.soft_nms(boxes, torch.tensor([0.9, 0.8]), 0.5)
    assert dets[:, 4].tolist() == pytest.approx([0.9, 0.4])


# --- groups -----------------------------------------------------------------------------------------------------------


def plain_match(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[list[int]]:
    left, groups = np.argsort(-scores.numpy(), kind="stable").tolist(), []
    while left:
        best, *left = left
        group = [i for i in left if plain_iou(boxes[best].numpy(), boxes[i].numpy(), 0) >= np.float32(threshold)]
        groups.append([best, *group])
        left = [i for i in left if i not in group]
    return groups


@settings(max_examples=200)
@given(items=scored_boxes.filter(len), threshold=thresholds.filter(bool))
def test_nms_match_groups_each_kept_box_with_those_that_it_suppresses(items, threshold):
    boxes, scores = as_tensors(items)
    groups = mmcv.ops.nms_match(torch.cat([boxes, scores[:, None]], 1), threshold)
    assert [group.tolist() for group in groups] == plain_match(boxes, scores, threshold)


# --- overlaps ---------------------------------------------------------------------------------------------------------

OVERLAPPING = torch.tensor([[0, 0, 10, 10], [5, 0, 15, 10], [8, 8, 18, 12], [50, 50, 51, 52]], dtype=torch.float32)


@pytest.mark.parametrize("offset", [0, 1])
def test_bbox_overlaps_are_the_ious_of_all_pairs_or_of_partners(offset):
    expected = torch.tensor([[plain_iou(a, b, offset) for b in OVERLAPPING.numpy()] for a in OVERLAPPING.numpy()])
    torch.testing.assert_close(mmcv.ops.bbox_overlaps(OVERLAPPING, OVERLAPPING[:3], offset=offset), expected[:, :3])
    partners = mmcv.ops.bbox_overlaps(OVERLAPPING, OVERLAPPING.flip(0), aligned=True, offset=offset)
    torch.testing.assert_close(partners, expected.flip(1).diag())


def test_bbox_overlaps_of_mode_iof_are_shares_of_the_first_box():
    shares = mmcv.ops.bbox_overlaps(OVERLAPPING[:3], OVERLAPPING[:2], "iof")
    torch.testing.assert_close(shares, torch.tensor([[1.0, 0.5], [0.5, 1.0], [0.1, 0.35]]))
