"""Group and switchable norm from moments are those of the map, whatever the shift that the moments are about."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ce_mm import ops
from ce_mm.ops.reference import switchable_norm


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def applied(scale, offset, x, shift):
    return scale[..., None, None] * (x - shift[..., None, None]) + offset[..., None, None]


def some_instance(*shape, seed=0):
    """Means and positive variances of z."""
    return torch.stack([draw(*shape, seed=seed), draw(*shape, seed=seed + 1).abs() + 0.1])


@given(
    n=st.integers(1, 3), groups=st.sampled_from([1, 2, 4, 8]), positions=st.integers(1, 4), seed=st.integers(0, 20)
)
def test_a_group_norm_is_pytorch_s_whatever_the_shift(n, groups, positions, seed):
    x, shift, weight, bias = draw(n, 8, 3, positions, seed=seed), draw(8, seed=1), draw(8, seed=2), draw(8, seed=3)
    moments = ops.moments(x, 1, shift=shift, products=False)
    affine = ops.group_norm_affine(moments.instance, shift, groups, weight, bias, 1e-3)
    torch.testing.assert_close(applied(*affine, x, shift), F.group_norm(x, groups, weight, bias, 1e-3))


def test_a_group_norm_without_parameters_only_normalises():
    x, shift = draw(2, 8, 3, 3), draw(8, seed=1)
    moments = ops.moments(x, 1, shift=shift, products=False)
    affine = ops.group_norm_affine(moments.instance, shift, 8, None, None, 1e-5)
    torch.testing.assert_close(applied(*affine, x, shift), F.instance_norm(x))


def test_a_single_position_and_a_constant_far_from_the_shift_have_the_variance_0():
    x = 300 * torch.randn(2, 8, 3, 1, generator=torch.Generator().manual_seed(0))[:, :, :1].expand(-1, -1, 3, 3)
    for part in (x, x[..., :1, :1]):
        instance = ops.moments(part, 1, shift=torch.zeros(8), products=False).instance
        scale, offset = ops.group_norm_affine(instance, torch.zeros(8), 8, None, None, 1e-5)
        assert (applied(scale, offset, part, torch.zeros(8)).abs() <= 0.1).all()
        assert scale.isfinite().all()
    torch.testing.assert_close(scale, torch.full_like(scale, 1e-5**-0.5))


@given(n=st.integers(1, 4), seed=st.integers(0, 50), shifts=st.booleans())
def test_the_statistics_over_samples_are_those_of_the_batch_whatever_the_shift(n, seed, shifts):
    x = draw(n, 4, 3, 5, seed=seed)
    shift = draw(n, 4, seed=1) if shifts else draw(4, seed=1)
    instance = ops.moments(x, 1, shift=shift, products=False).instance
    mean, variance = ops.statistics_over_samples(instance, shift)
    torch.testing.assert_close(mean + shift, x.mean((0, 2, 3)).expand(n, 4))
    torch.testing.assert_close(variance, x.var((0, 2, 3), correction=0))


@pytest.mark.parametrize("shifts", [(8,), (3, 8)])
@pytest.mark.parametrize("running", [False, True])
def test_a_switchable_norm_is_the_mix_of_three(running, shifts):
    x, shift, weight, bias = draw(3, 8, 3, 4), draw(*shifts, seed=1), draw(8, seed=2), draw(8, seed=3)
    logits = draw(3, seed=4), draw(3, seed=5)
    moments = ops.moments(x, 1, shift=shift, products=False)
    if running:
        averages = draw(8, seed=6), draw(8, seed=7).square()
        statistics = averages[0] - shift, averages[1]
    else:
        averages, statistics = None, ops.statistics_over_samples(moments.instance, shift)
    affine = ops.switchable_norm_affine(moments.instance, shift, *statistics, *logits, weight, bias, 1e-3)
    expected = switchable_norm(x, *logits, weight, bias, 1e-3, averages)
    torch.testing.assert_close(applied(*affine, x, shift), expected)


@pytest.mark.parametrize("common", [True, False])
def test_large_means_of_the_channels_do_not_cancel_in_their_group_s_variance(common):
    x = draw(2, 8, 9, 9) + 1e4 + (0 if common else 1e3 * draw(8, seed=1)[:, None, None])
    single = ops.moments(x.float(), 1, products=False)
    scale, offset = ops.group_norm_affine(single.instance, single.shift, 2, None, None, 1e-5)
    y = applied(scale, offset, x.float(), single.shift)
    expected = F.group_norm(x.float().double(), 2)
    assert (y - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("affine", [True, False])
def test_the_group_norm_passes_gradcheck(groups, affine):
    parameters = [draw(8, seed=k).requires_grad_() if affine else None for k in (2, 3)]

    def function(instance, weight, bias):
        return ops.group_norm_affine(instance, draw(8, seed=4), groups, weight, bias, 1e-3)

    assert torch.autograd.gradcheck(function, [some_instance(3, 8).requires_grad_(), *parameters])


def test_the_switchable_norm_passes_gradcheck():
    inputs = [some_instance(3, 8), draw(8, seed=2), draw(8, seed=3).square(), draw(3, seed=4), draw(3, seed=5)]
    inputs = [value.requires_grad_() for value in [*inputs, draw(8, seed=6), draw(8, seed=7)]]

    def function(instance, *values):
        return ops.switchable_norm_affine(instance, draw(8, seed=8), *values, 1e-3)

    assert torch.autograd.gradcheck(function, inputs)
