import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ce_mm import ops

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def sample(n=2, c=8, h=5, w=3, dtype=torch.float64, seed=0):
    return torch.randn(n, c, h, w, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def products(z, g):
    z = z.flatten(2).unflatten(1, (-1, g))
    return z @ z.mT / z.shape[-1]


@given(
    n=st.integers(1, 3),
    groups=st.integers(1, 3),
    g=st.sampled_from([1, 2, 4]),
    h=st.integers(1, 5),
    layout=st.sampled_from(LAYOUTS),
    per_sample=st.booleans(),
    shifts=st.booleans(),
)
def test_moments_are_means_variances_and_mean_products(n, groups, g, h, layout, per_sample, shifts):
    x = sample(n, groups * g, h, 2).contiguous(memory_format=layout)
    shift = sample(n, groups * g, 1, 1, seed=1).flatten(1)
    shift = shift if shifts else shift[0]
    z = x - shift[..., None, None]
    result = ops.moments(x, g, shift=shift, per_sample=per_sample)
    torch.testing.assert_close(result.instance, torch.stack([z.mean((2, 3)), z.var((2, 3), correction=0)]))
    expected = products(z, g)
    torch.testing.assert_close(result.second, expected if per_sample else expected.mean(0, keepdim=True))


def test_without_products_only_means_and_variances_are_taken():
    x = sample()
    result = ops.moments(x, 4, products=False)
    assert result.second.numel() == 0
    torch.testing.assert_close(result.instance[1], x.var((2, 3), correction=0))


def test_half_precision_is_summed_in_float32():
    x = torch.full((1, 1, 64, 64), 1.001, dtype=torch.bfloat16)
    result = ops.moments(x, 1, shift=torch.zeros(1))
    assert result.instance.dtype == result.second.dtype == torch.float32
    torch.testing.assert_close(result.instance[0], x[:, :, 0, 0].float())


def test_only_channels_far_from_zero_are_shifted_by_about_their_mean():
    x = sample(4, 3, 8, 8) + torch.tensor([0.0, 1.0, -1000.0], dtype=torch.float64)[:, None, None]
    shift = ops.moments(x, 1).shift
    assert not shift.requires_grad
    assert torch.equal(shift[:2], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(shift[2], x[:, 2].mean())


@pytest.mark.parametrize("near", [0.0, 1000.0])
def test_a_guess_is_kept_where_the_data_lie_near_it(near):
    x, guess = sample(4, 3, 8, 8) + near, torch.full((3,), 999.0, dtype=torch.float64)
    shift = ops.moments(x, 1, guess=(guess, torch.ones_like(guess))).shift
    torch.testing.assert_close(shift, guess if near else x.mean((0, 2, 3)))


def test_a_mean_of_a_thousand_spreads_costs_no_precision():
    x = sample(4, 8, 9, 9) + 1000
    single, double = ops.moments(x.float(), 4), ops.moments(x.float().double(), 4)
    torch.testing.assert_close(single.instance[1].double(), double.instance[1], rtol=1e-5, atol=1e-6)


def test_the_data_shift_lies_within_the_data_and_is_zero_for_an_empty_batch():
    x = (sample() + 1000).requires_grad_()
    shift = ops.data_shift(x)
    assert not shift.requires_grad
    assert ((x.amin((0, 2, 3)) <= shift) & (shift <= x.amax((0, 2, 3)))).all()
    assert torch.equal(ops.data_shift(torch.empty(0, 3, 4, 4)), torch.zeros(3))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_variance_of_a_sample_far_from_the_others_is_as_precise_as_by_itself(layout, dtype):
    x = sample(4, dtype=torch.float32) * 1e-3 + 100 * sample(4, h=1, w=1, seed=1).float()
    x = x.to(dtype).contiguous(memory_format=layout)
    expected = x.double().var((2, 3), correction=0)
    torch.testing.assert_close(ops.moments(x, 4).instance[1].double(), expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_samples_far_from_each_other_have_a_shift_each(layout):
    far = torch.tensor([0.0, 1000.0, -1e5])
    x = (sample(3, dtype=torch.float32) + far[:, None, None, None]).contiguous(memory_format=layout)
    moments = ops.moments(x, 4, per_sample=True)
    assert moments.shift.shape == (3, 8)
    assert (moments.shift - far[:, None]).abs().max() < 2
    z = x.double() - moments.shift.double()[..., None, None]
    torch.testing.assert_close(moments.second.double(), products(z, 4), atol=1e-6, rtol=1e-6)
    assert ops.data_shift(x, per_sample=True).sub(far[:, None]).abs().max() < 3


def test_a_map_that_is_dense_in_neither_layout_is_read_rightly():
    x = sample(2, 4, 6, 6)[:, :, ::2, 1:]
    torch.testing.assert_close(ops.moments(x, 2)[:3], ops.moments(x.contiguous(), 2)[:3])


def test_an_empty_batch_has_no_means_and_zero_products():
    result = ops.moments(torch.empty(0, 4, 3, 3), 2)
    assert result.instance.shape == (2, 0, 4)
    assert torch.equal(result.second, torch.zeros(1, 2, 2, 2))


@pytest.mark.parametrize("per_sample", [False, True])
def test_moments_pass_gradcheck(per_sample):
    shift = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
    x = sample(2, 4, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.moments(x, 2, shift=shift, per_sample=per_sample)[1:3], x)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("products", [True, False])
def test_the_operator_passes_opcheck(layout, products):
    x = sample().contiguous(memory_format=layout).requires_grad_()
    ones = torch.ones(8, dtype=torch.float64)
    for shift, *guess in ((None, None, None), (ones, None, None), (None, 9 * ones, ones)):
        torch.library.opcheck(torch.ops.ce_mm.moments.default, (x, shift, *guess, 4, products, False))


def test_the_batch_statistics_are_pytorch_s_and_pass_gradcheck():
    x = sample(3, 8, 4, 5)
    instance = ops.moments(x, 1, products=False).instance.requires_grad_()
    expected = torch.var_mean(x, (0, 2, 3), correction=0)
    torch.testing.assert_close(ops.batch_statistics(instance), expected[::-1])
    assert torch.autograd.gradcheck(ops.batch_statistics, instance)
