"""RoI pooling behind mmcv's interface takes the largest pixel that a cell of the box touches."""
import math

import mmcv.ops
import numpy as np
import pytest
import torch

# Inside, over the borders, outside, within a pixel, of negative width, the whole map.
ROIS = torch.tensor([
    [0, 3.0, 2.0, 20.0, 14.0], [1, -6.0, -4.0, 9.0, 5.0], [1, 15.0, 12.0, 60.0, 40.0], [0, 200.0, 200.0, 220.0, 230.0],
    [0, 7.1, 5.3, 7.1, 5.3], [0, 9.0, 5.0, 4.0, 9.0], [1, 0.0, 0.0, 25.0, 17.0],
], dtype=torch.float64)


def plain(x: torch.Tensor, rois: torch.Tensor, size: tuple[int, int], scale: float) -> torch.Tensor:
    output = torch.zeros(len(rois), x.shape[1], *size, dtype=x.dtype)
    for k, roi in enumerate(rois.tolist()):
        x1, y1, x2, y2 = roi[1] * scale, roi[2] * scale, (roi[3] + 1) * scale, (roi[4] + 1) * scale
        for i, j in np.ndindex(size):
            top, bottom = (y1 + (y2 - y1) / size[0] * cell for cell in (i, i + 1))
            left, right = (x1 + (x2 - x1) / size[1] * cell for cell in (j, j + 1))
            rows = slice(max(math.floor(top), 0), max(math.ceil(bottom), 0))
            columns = slice(max(math.floor(left), 0), max(math.ceil(right), 0))
            cell = x[int(roi[0]), :, rows, columns].flatten(1)
            if x1 < x2 and y1 < y2 and cell.numel() > 0:
                output[k, :, i, j] = cell.amax(1)
    return output


@pytest.mark.parametrize("size, scale", [((3, 2), 0.5), ((2, 4), 1.0), ((7, 7), 0.3)])
def test_roi_pool_and_its_gradient_equal_the_plain_formula(size, scale):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 13, dtype=torch.float64, requires_grad=True)
    same = x.detach().clone().requires_grad_()
    output, expected = mmcv.ops.RoIPool(size, scale)(x, ROIS), plain(same, ROIS, size, scale)
    assert torch.equal(output, expected)
    grad_output = torch.randn_like(output)
    for result in (output, expected):
        result.backward(grad_output)
    torch.testing.assert_close(x.grad, same.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_pooled_as_it_is(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 13).to(dtype).requires_grad_()
    rois = ROIS.to(dtype)
    output = mmcv.ops.roi_pool(x, rois, (3, 2), 0.5)
    assert torch.equal(output, plain(x.detach().float(), rois.float(), (3, 2), 0.5).to(dtype))
    output.sum().backward()
    assert x.grad.sum() == (output != 0).sum()


def test_no_boxes_give_an_empty_output_and_a_zero_gradient():
    x = torch.randn(2, 3, 9, 13, requires_grad=True)
    output = mmcv.ops.roi_pool(x, torch.zeros(0, 5), (7, 7), 0.25)
    output.sum().backward()
    assert output.shape == (0, 3, 7, 7)
    assert torch.equal(x.grad, torch.zeros_like(x))
