"""The operators behind mmcv's interface equal torchvision's and the plain formulas, and never replace compiled ones."""
import math
import subprocess
import sys
import textwrap

import mmengine.utils.dl_utils
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from ce_mm.compat import mmcv_ext

mmcv_ext.install_mmcv_ext()

import mmcv.ops  # noqa: E402  (without compiled operators it needs the line above)

# The sampling ratios of mmdet 3.x's own configs: 0 (23 times), 2 (20 times), -1 (once). 1 and 3 are for good measure.
SAMPLING_RATIOS = [0, 2, -1, 1, 3]
EMPTY = torch.zeros(0)


# --- RoIAlign ---------------------------------------------------------------------------------------------------------


def bilinear_weights(y: float, x: float, height: int, width: int) -> np.ndarray:
    """What each pixel of an (height, width) map contributes to its value at (y, x)."""
    weights = np.zeros((height, width))
    if not (-1 <= y <= height and -1 <= x <= width):
        return weights
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = math.floor(y), math.floor(x)
    for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            if share_y * share_x > 0:
                weights[row, column] += share_y * share_x
    return weights


def roi_weights(roi, size, scale, ratio, aligned, height, width) -> np.ndarray:
    """The matrix of RoIAlign for one region: (*size, height, width)."""
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (float(v) * scale - shift for v in roi[1:])
    roi_height, roi_width = y2 - y1, x2 - x1
    if not aligned:
        roi_height, roi_width = max(roi_height, 1.0), max(roi_width, 1.0)
    cell_height, cell_width = roi_height / size[0], roi_width / size[1]
    rows = ratio if ratio > 0 else math.ceil(cell_height)
    columns = ratio if ratio > 0 else math.ceil(cell_width)
    weights = np.zeros((*size, height, width))
    for i, j in np.ndindex(size):
        for a in range(rows):
            for b in range(columns):
                y = y1 + cell_height * (i + (a + 0.5) / rows)
                x = x1 + cell_width * (j + (b + 0.5) / columns)
                weights[i, j] += bilinear_weights(y, x, height, width) / (rows * columns)
    return weights


def plain_roi_align(x, rois, size, scale, ratio, aligned, grad_output):
    """Output and gradient of RoIAlign as matrix products in NumPy, one region after the other."""
    output, grad = np.zeros((len(rois), x.shape[1], *size)), np.zeros(x.shape)
    for k, roi in enumerate(rois.numpy()):
        weights = roi_weights(roi, size, scale, ratio, aligned, *x.shape[2:])
        n = int(roi[0])
        output[k] = np.einsum("ijhw,chw->cij", weights, x[n].numpy())
        grad[n] += np.einsum("ijhw,cij->chw", weights, grad_output[k].numpy())
    return torch.from_numpy(output), torch.from_numpy(grad)


def stand_in_roi_align(x, rois, size, scale, ratio, aligned, grad_output):
    """The same from ce_mm's functions; both results go into tensors of rubbish, which they must overwrite."""
    options = {
        "aligned_height": size[0], "aligned_width": size[1], "spatial_scale": scale, "sampling_ratio": ratio,
        "pool_mode": 1, "aligned": aligned,
    }
    output, grad = torch.full_like(grad_output, 7.0), torch.full_like(x, 7.0)
    mmcv_ext.roi_align_forward(x, rois, output, EMPTY, EMPTY, **options)
    mmcv_ext.roi_align_backward(grad_output, rois, EMPTY, EMPTY, grad, **options)
    return output, grad


def torchvision_roi_align(x, rois, size, scale, ratio, aligned, grad_output):
    x = x.clone().requires_grad_()
    output = torchvision.ops.roi_align(x, rois, size, scale, ratio, aligned)
    output.backward(grad_output)
    return output.detach(), x.grad


def mmcv_roi_align(x, rois, size, scale, ratio, aligned, grad_output):
    x = x.clone().requires_grad_()
    output = mmcv.ops.RoIAlign(size, scale, ratio, aligned=aligned)(x, rois)
    output.backward(grad_output)
    return output.detach(), x.grad


# Inside, over the border on each side, far outside, narrower than a pixel, without area, the whole picture.
ROIS = torch.tensor([
    [0, 3.0, 2.0, 20.0, 14.0], [1, -6.0, -4.0, 9.0, 5.0], [1, 15.0, 12.0, 60.0, 40.0], [0, 200.0, 200.0, 220.0, 230.0],
    [1, -90.0, -80.0, -70.0, -60.0], [0, 7.1, 5.3, 7.4, 5.5], [0, 8.0, 8.0, 8.0, 8.0], [1, 0.0, 0.0, 26.0, 18.0],
], dtype=torch.float64)


@pytest.mark.parametrize("ratio", SAMPLING_RATIOS)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("size, scale", [((3, 2), 0.5), ((2, 4), 1.0)])
@pytest.mark.parametrize("implementation", [stand_in_roi_align, mmcv_roi_align])
def test_roi_align_and_its_gradient_equal_the_plain_formula_and_torchvision(
    implementation, size, scale, aligned, ratio
):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 13, dtype=torch.float64)
    arguments = (x, ROIS, size, scale, ratio, aligned, torch.randn(len(ROIS), 3, *size, dtype=torch.float64))
    output, grad = implementation(*arguments)
    for expected_output, expected_grad in (plain_roi_align(*arguments), torchvision_roi_align(*arguments)):
        torch.testing.assert_close(output, expected_output, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-12)


coordinate = st.floats(-15, 30, allow_nan=False)


@settings(max_examples=40)
@given(
    corner=st.tuples(coordinate, coordinate), extent=st.tuples(st.floats(0, 25), st.floats(0, 25)),
    ratio=st.sampled_from(SAMPLING_RATIOS), aligned=st.booleans(), scale=st.sampled_from([1.0, 0.5, 0.3]),
)
def test_roi_align_of_any_region_equals_the_plain_formula(corner, extent, ratio, aligned, scale):
    torch.manual_seed(0)
    x = torch.randn(1, 2, 7, 8, dtype=torch.float64)
    (x1, y1), (w, h) = corner, extent
    rois = torch.tensor([[0, x1, y1, x1 + w, y1 + h]], dtype=torch.float64)
    arguments = (x, rois, (2, 3), scale, ratio, aligned, torch.randn(1, 2, 2, 3, dtype=torch.float64))
    for result, expected in zip(stand_in_roi_align(*arguments), plain_roi_align(*arguments), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("implementation", [stand_in_roi_align, mmcv_roi_align])
@pytest.mark.parametrize("pictures", [2, 0])
def test_no_regions_give_an_empty_output_and_a_zero_gradient(implementation, pictures):
    x = torch.randn(pictures, 3, 9, 13)
    output, grad = implementation(x, torch.zeros(0, 5), (7, 7), 0.25, 0, True, torch.zeros(0, 3, 7, 7))
    assert output.shape == (0, 3, 7, 7)
    assert torch.equal(grad, torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_float32_result_rounded(dtype):
    torch.manual_seed(0)
    x, grad_output = torch.randn(2, 3, 9, 13).to(dtype), torch.randn(len(ROIS), 3, 3, 2).to(dtype)
    half = stand_in_roi_align(x, ROIS.to(dtype), (3, 2), 0.5, 2, True, grad_output)
    full = stand_in_roi_align(x.float(), ROIS.to(dtype).float(), (3, 2), 0.5, 2, True, grad_output.float())
    for result, expected in zip(half, full, strict=True):
        assert torch.equal(result, expected.to(dtype))


def test_max_pooling_says_by_name_that_it_is_absent():
    with pytest.raises(NotImplementedError, match=r"pool_mode='max'.*full .not lite. mmcv"):
        mmcv.ops.RoIAlign(2, pool_mode="max")(torch.randn(1, 1, 4, 4), torch.tensor([[0, 0.0, 0.0, 3.0, 3.0]]))


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
    assert mmcv_ext.nms(boxes, scores, iou_threshold=threshold, offset=offset).tolist() == expected
    dets, kept = mmcv.ops.nms(boxes, scores, threshold, offset)
    assert kept.tolist() == expected
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


def test_nms_without_offset_is_torchvisions():
    torch.manual_seed(0)
    corners = torch.rand(300, 2) * 100
    boxes, scores = torch.cat([corners, corners + torch.rand(300, 2) * 40], 1), torch.rand(300)
    assert torch.equal(mmcv_ext.nms(boxes, scores, 0.5, 0), torchvision.ops.nms(boxes, scores, 0.5))


def test_an_iou_of_exactly_the_threshold_keeps_the_box():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 1.0], [7.0, 0.0, 10.0, 1.0]])  # IoU 3/10
    assert mmcv_ext.nms(boxes, torch.tensor([0.9, 0.8]), 0.3, 0).tolist() == [0, 1]
    assert mmcv_ext.nms(boxes, torch.tensor([0.9, 0.8]), 0.29, 0).tolist() == [0]


def test_the_offset_decides_between_boxes_that_touch():
    boxes = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])  # without area, or 1 and 2 pixels
    assert mmcv_ext.nms(boxes, torch.tensor([0.9, 0.8]), 0.4, 0).tolist() == [0, 1]
    assert mmcv_ext.nms(boxes, torch.tensor([0.9, 0.8]), 0.4, 1).tolist() == [0]


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_of_no_boxes_keeps_none(offset):
    kept = mmcv_ext.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, offset)
    assert kept.shape == (0,) and kept.dtype == torch.int64
    dets, kept = mmcv.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, offset)
    assert dets.shape == (0, 5) and kept.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nms_takes_other_precisions(dtype):
    boxes = torch.tensor([[0, 0, 8, 8], [1, 0, 8, 8], [20, 20, 30, 30]], dtype=dtype)
    assert mmcv_ext.nms(boxes, torch.tensor([0.5, 0.75, 0.25], dtype=dtype), 0.5, 0).tolist() == [1, 2]


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


# --- the module -------------------------------------------------------------------------------------------------------

stands_in = pytest.mark.skipif(not mmcv_ext.install_mmcv_ext(), reason="mmcv has its compiled operators here")


@stands_in
def test_mmcv_and_mmengine_find_the_module():
    assert mmengine.utils.dl_utils.mmcv_full_available()
    assert mmcv.utils.ext_loader.load_ext("_ext", ["nms", "upfirdn2d"]) is mmcv._ext is sys.modules["mmcv._ext"]


@stands_in
def test_an_absent_operator_is_named_when_it_is_called():
    operator = mmcv._ext.deform_conv_forward
    with pytest.raises(NotImplementedError, match=r"mmcv\._ext\.deform_conv_forward.*full .not lite. mmcv"):
        operator(1, 2, three=3)


@stands_in
def test_pythons_own_questions_get_pythons_own_answer():
    assert not hasattr(mmcv._ext, "__path__")
    with pytest.raises(AttributeError, match="__wrapped__"):
        _ = mmcv._ext.__wrapped__


@stands_in
def test_a_second_installation_changes_nothing():
    before = sys.modules["mmcv._ext"]
    assert mmcv_ext.install_mmcv_ext()
    assert sys.modules["mmcv._ext"] is before


def python(script: str, **names: object) -> subprocess.CompletedProcess:
    """Run a script in a fresh interpreter; stdout and stderr together in ``stdout``."""
    head = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(script)],
        check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )


@stands_in
def test_the_log_says_once_and_when_first_used_that_torchvision_stands_in():
    run = python("""
        import torch
        import ce_mm.compat
        ce_mm.compat.apply()
        ce_mm.compat.apply()
        import mmcv.ops
        print("before")
        for _ in range(2):
            mmcv.ops.nms(torch.zeros(1, 4), torch.ones(1), 0.5)
            mmcv.ops.roi_align(torch.zeros(1, 1, 2, 2), torch.zeros(1, 5), 2)
    """)
    before, after = run.stdout.split("before")
    assert before.count("torchvision's stand in") == 0
    assert after.count("torchvision's stand in") == 1


def test_a_compiled_module_is_never_replaced(tmp_path):
    (tmp_path / "_ext.py").write_text("nms = 'the compiled one'\ndef __getattr__(name): return print")
    run = python("""
        import mmcv
        mmcv.__path__.insert(0, folder)
        from ce_mm.compat.mmcv_ext import install_mmcv_ext
        assert not install_mmcv_ext()
        import mmcv.ops
        assert mmcv._ext.nms == "the compiled one"
        assert not install_mmcv_ext()
    """, folder=str(tmp_path))
    assert "stand in" not in run.stdout


def test_a_compiled_module_is_not_replaced_even_if_broken(tmp_path):
    (tmp_path / "_ext.py").write_text("raise ImportError('undefined symbol')")
    run = python("""
        import mmcv
        mmcv.__path__.insert(0, folder)
        from ce_mm.compat.mmcv_ext import install_mmcv_ext
        assert not install_mmcv_ext()
        try:
            import mmcv.ops
        except ImportError as error:
            assert "undefined symbol" in str(error)
        else:
            raise AssertionError("mmcv.ops was imported over a broken extension")
    """, folder=str(tmp_path))
    assert "stand in" not in run.stdout
