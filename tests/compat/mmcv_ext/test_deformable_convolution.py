"""Deformable convolution behind mmcv's interface equals the plain sum of bilinear samples, its gradient that sum's."""
import math

import mmcv.ops
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import deform_conv2d, modulated_deform_conv2d

GEOMETRY = dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, deform_groups=2)  # H and W differ in each


def sample(x: np.ndarray, y_at: float, x_at: float) -> float:
    """The value of an (H, W) map between its pixels; pixels outside are 0."""
    top, left = math.floor(y_at), math.floor(x_at)
    total = 0.0
    for row, share_y in ((top, 1 - (y_at - top)), (top + 1, y_at - top)):
        for column, share_x in ((left, 1 - (x_at - left)), (left + 1, x_at - left)):
            if 0 <= row < x.shape[0] and 0 <= column < x.shape[1]:
                total += share_y * share_x * x[row, column]
    return total


def plain(x, offset, mask, weight, stride, padding, dilation, groups, deform_groups) -> torch.Tensor:
    """One output after the other, one sample after the other."""
    channels, per_group, (height, width) = x.shape[1], weight.shape[1], weight.shape[2:]
    offset = offset.unflatten(1, (deform_groups, height, width, 2)).numpy()
    mask = mask.unflatten(1, (deform_groups, height, width)).numpy()
    output = np.zeros((len(x), len(weight), *offset.shape[-2:]))
    for n, o, i, j in np.ndindex(output.shape):
        for c, kh, kw in np.ndindex(weight.shape[1:]):
            channel = o // (len(weight) // groups) * per_group + c
            d = channel // (channels // deform_groups)
            dy, dx = offset[n, d, kh, kw, :, i, j]
            y_at = i * stride[0] - padding[0] + kh * dilation[0] + dy
            x_at = j * stride[1] - padding[1] + kw * dilation[1] + dx
            value = sample(x[n, channel].numpy(), y_at, x_at)
            output[n, o, i, j] += weight[o, c, kh, kw] * mask[n, d, kh, kw, i, j] * value
    return torch.from_numpy(output)


def random_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 4, 5, 4), "offset": (2, 24, 3, 4), "mask": (2, 12, 3, 4), "weight": (6, 2, 2, 3), "bias": (6,)}
    return {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}


def leaves(*names: str) -> list[torch.Tensor]:
    return [random_tensors()[name].requires_grad_() for name in names]


def test_deformable_convolution_equals_the_plain_sum():
    t = random_tensors()
    expected = plain(t["x"], t["offset"], torch.ones_like(t["mask"]), t["weight"], **GEOMETRY)
    torch.testing.assert_close(deform_conv2d(t["x"], t["offset"], t["weight"], *GEOMETRY.values()), expected)


@pytest.mark.parametrize("with_bias", [False, True])
def test_modulated_deformable_convolution_equals_the_plain_sum(with_bias):
    t = random_tensors()
    bias = t["bias"] if with_bias else None
    output = modulated_deform_conv2d(t["x"], t["offset"], t["mask"], t["weight"], bias, *GEOMETRY.values())
    expected = plain(t["x"], t["offset"], t["mask"], t["weight"], **GEOMETRY)
    torch.testing.assert_close(output, expected + (t["bias"][:, None, None] if with_bias else 0))


def test_the_gradients_of_deformable_convolution_are_those_of_its_values():
    assert torch.autograd.gradcheck(
        lambda *tensors: deform_conv2d(*tensors, *GEOMETRY.values()), leaves("x", "offset", "weight"))


@pytest.mark.parametrize("names", [("x", "offset", "mask", "weight", "bias"), ("x", "offset", "mask", "weight")])
def test_the_gradients_of_modulated_deformable_convolution_are_those_of_its_values(names):
    def convolution(x, offset, mask, weight, bias=None):
        return modulated_deform_conv2d(x, offset, mask, weight, bias, *GEOMETRY.values())

    assert torch.autograd.gradcheck(convolution, leaves(*names))


def test_offsets_and_masks_of_a_larger_map_are_read_from_their_first_element_on():
    """mmcv's kernel steps through them by the output's size; mmdet's DyHead depends on it."""
    t = random_tensors()
    larger = {name: torch.cat([t[name].flatten(1), torch.randn(2, t[name][0].numel())], 1).reshape(2, -1, 6, 4)
              for name in ("offset", "mask")}
    outputs = [
        modulated_deform_conv2d(t["x"], offset, mask, t["weight"], None, *GEOMETRY.values())
        for offset, mask in ((t["offset"], t["mask"]), larger.values())
    ]
    assert torch.equal(*outputs)


def test_offsets_of_samples_just_outside_of_the_map_have_no_gradient():
    """As mmcv's kernel takes it on the lines -1 and H; inside, the derivative is the one to the next row and column."""
    x = torch.arange(1.0, 7.0).reshape(1, 1, 2, 3)
    kernel, ones = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 4, 5)
    plain, modulated = (torch.zeros(1, 2, 4, 5, requires_grad=True) for _ in range(2))
    deform_conv2d(x, plain, kernel, 1, 1).sum().backward()
    modulated_deform_conv2d(x, modulated, ones, kernel, None, 1, 1).sum().backward()
    expected = torch.zeros(1, 2, 4, 5)
    expected[0, 0, 1:3, 1:4] = torch.tensor([[3.0, 3.0, 3.0], [-4.0, -5.0, -6.0]])  # down: the row below is 0
    expected[0, 1, 1:3, 1:4] = torch.tensor([[1.0, 1.0, -3.0], [1.0, 1.0, -6.0]])
    assert torch.equal(plain.grad, expected)
    assert torch.equal(modulated.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_float32_result_rounded(dtype):
    half = [random_tensors()[name].to(dtype) for name in ("x", "offset", "weight")]
    output = deform_conv2d(*half, *GEOMETRY.values())
    assert torch.equal(output, deform_conv2d(*[t.float() for t in half], *GEOMETRY.values()).to(dtype))


def test_mmcvs_layers_start_as_ordinary_convolutions():
    """Their offsets start at 0; the modulation of the second at 1/2."""
    x = torch.randn(1, 4, 6, 5)
    for kind, modulation in ((mmcv.ops.DeformConv2dPack, 1.0), (mmcv.ops.ModulatedDeformConv2dPack, 0.5)):
        layer = kind(4, 2, 3, padding=1, bias=False)
        torch.testing.assert_close(layer(x), modulation * F.conv2d(x, layer.weight, padding=1))
