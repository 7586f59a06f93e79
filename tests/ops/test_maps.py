import pytest
import torch

from ce_mm import ops

X = torch.randn(3, 8, 4, 5)
COEFFICIENTS = torch.zeros(8), None, torch.ones(3, 8), torch.zeros(3, 8)


def test_the_passes_take_maps_alone():
    for x in (X[0], X.flatten(2)):
        with pytest.raises(ValueError, match=r"moments takes a map of shape \(N, C, H, W\), got"):
            ops.moments(x, 4)
        with pytest.raises(ValueError, match=r"group_affine takes a map of shape \(N, C, H, W\), got"):
            ops.group_affine(x, *COEFFICIENTS)


def test_whole_and_complex_numbers_are_no_map():
    for dtype in (torch.int32, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=f"takes a map of a floating type, got {dtype}"):
            ops.moments(X.to(dtype), 4)


def test_a_residual_has_the_map_s_shape():
    with pytest.raises(ValueError, match=r"adds a residual of .* \(3, 8, 4, 5\) on cpu, got \(3, 8, 5, 4\)"):
        ops.group_affine(X, *COEFFICIENTS, residual=X.mT)


@pytest.mark.parametrize("group_size", [0, -4, 3, 16])
def test_a_group_size_divides_the_channels(group_size):
    with pytest.raises(ValueError, match=f"group_size must divide the 8 channels, got {group_size}"):
        ops.moments(X, group_size)
