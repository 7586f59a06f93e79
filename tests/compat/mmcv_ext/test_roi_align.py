"""RoIAlign behind mmcv's interface equals torchvision's and the plain formula, of the mean and of the maximum."""
import functools
import math

import mmcv.ops
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from ce_mm.compat.mmcv_ext import roi_align

# The sampling ratios of mmdet 3.x's own configs: 0 (23 times), 2 (20 times), -1 (once). 1 and 3 are for good measure.
SAMPLING_RATIOS = [0, 2, -1, 1, 3]
EMPTY = torch.zeros(0)


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


def cell_samples(roi, cell, size, scale, ratio, aligned, height, width) -> list[np.ndarray]:
    """The weights (height, width) of each sample of a region's cell (i, j)."""
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (float(v) * scale - shift for v in roi[1:])
    roi_height, roi_width = y2 - y1, x2 - x1
    if not aligned:
        roi_height, roi_width = max(roi_height, 1.0), max(roi_width, 1.0)
    cell_height, cell_width = roi_height / size[0], roi_width / size[1]
    rows = ratio if ratio > 0 else math.ceil(cell_height)
    columns = ratio if ratio > 0 else math.ceil(cell_width)
    return [
        bilinear_weights(
            y1 + cell_height * (cell[0] + (a + 0.5) / rows), x1 + cell_width * (cell[1] + (b + 0.5) / columns),
            height, width,
        )
        for a, b in np.ndindex(rows, columns)
    ]


def roi_weights(roi, size, scale, ratio, aligned, height, width) -> np.ndarray:
    """The matrix of RoIAlign for one region: (*size, height, width)."""
    weights = np.zeros((*size, height, width))
    for cell in np.ndindex(size):
        samples = cell_samples(roi, cell, size, scale, ratio, aligned, height, width)
        weights[cell] = sum(samples) / max(len(samples), 1)
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
    roi_align.roi_align_forward(x, rois, output, EMPTY, EMPTY, **options)
    roi_align.roi_align_backward(grad_output, rois, EMPTY, EMPTY, grad, **options)
    return output, grad


def torchvision_roi_align(x, rois, size, scale, ratio, aligned, grad_output):
    x = x.clone().requires_grad_()
    output = torchvision.ops.roi_align(x, rois, size, scale, ratio, aligned)
    output.backward(grad_output)
    return output.detach(), x.grad


def mmcv_roi_align(x, rois, size, scale, ratio, aligned, grad_output, pool_mode="avg"):
    x = x.clone().requires_grad_()
    output = mmcv.ops.RoIAlign(size, scale, ratio, pool_mode, aligned)(x, rois)
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


@pytest.mark.parametrize(
    "implementation", [stand_in_roi_align, mmcv_roi_align, functools.partial(mmcv_roi_align, pool_mode="max")])
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


def plain_max_roi_align(x, rois, size, scale, ratio, aligned):
    """The largest sample of each cell (K, C, *size), one cell after the other."""
    maxima = []
    for roi in rois:
        for cell in np.ndindex(size):
            samples = [torch.full((x.shape[1],), -10000.0, dtype=x.dtype)]
            for weights in cell_samples(roi, cell, size, scale, ratio, aligned, *x.shape[2:]):
                samples.append((x[int(roi[0])] * torch.from_numpy(weights)).sum((1, 2)))
            maxima.append(torch.stack(samples).amax(0))
    return torch.stack(maxima).reshape(len(rois), *size, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("ratio", SAMPLING_RATIOS)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("size, scale", [((3, 2), 0.5), ((2, 4), 1.0)])
def test_max_roi_align_and_its_gradient_equal_the_plain_formula(size, scale, aligned, ratio):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 13, dtype=torch.float64, requires_grad=True)
    same = x.detach().clone().requires_grad_()
    output = mmcv.ops.RoIAlign(size, scale, ratio, "max", aligned)(x, ROIS)
    expected = plain_max_roi_align(same, ROIS, size, scale, ratio, aligned)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    grad_output = torch.randn_like(output)
    for result in (output, expected):
        result.backward(grad_output)
    torch.testing.assert_close(x.grad, same.grad, rtol=1e-10, atol=1e-12)
