"""Masked convolution behind mmcv's interface equals the ordinary one under its mask, and is 0 elsewhere."""
import mmcv.ops
import pytest
import torch
import torch.nn.functional as F


@pytest.mark.parametrize("kernel, padding", [((3, 3), 1), ((1, 1), 0), ((5, 3), (2, 1))])
def test_masked_convolution_equals_the_ordinary_one_under_its_mask(kernel, padding):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 4, 6, 5), torch.randn(3, 4, *kernel), torch.randn(3)
    mask = torch.rand(1, 6, 5) > 0.6
    output = mmcv.ops.masked_conv2d(x, mask, weight, bias, padding)
    torch.testing.assert_close(output, F.conv2d(x, weight, bias, padding=padding) * mask)


def test_an_empty_mask_gives_zeros():
    x, mask = torch.randn(1, 4, 6, 5), torch.zeros(1, 6, 5)
    assert not mmcv.ops.masked_conv2d(x, mask, torch.randn(3, 4, 3, 3), torch.randn(3), 1).any()
