import torch
from hypothesis import given
from hypothesis import strategies as st

from ce_mm import ops


def sample(n=2, c=8, h=5, w=3, dtype=torch.float64, seed=0):
    return torch.randn(n, c, h, w, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@given(n=st.integers(1, 3), groups=st.integers(1, 3), g=st.sampled_from([1, 2, 4]), h=st.integers(1, 5))
def test_moments_are_the_means_of_values_and_products(n, groups, g, h):
    x = sample(n, groups * g, h, 2)
    mean, second = ops.moments(x, g, x.new_zeros(groups * g))
    z = x.flatten(2)
    torch.testing.assert_close(mean, z.mean(-1))
    for k in range(groups):
        block = z[:, k * g : (k + 1) * g]
        torch.testing.assert_close(second[:, k], torch.einsum("nip,njp->nij", block, block) / z.shape[-1])


def test_a_shift_moves_the_mean_and_leaves_the_covariance():
    x, shift = sample(), torch.arange(8, dtype=torch.float64)
    mean, second = ops.moments(x, 4, shift)
    plain_mean, plain_second = ops.moments(x, 4, torch.zeros_like(shift))
    torch.testing.assert_close(mean, plain_mean - shift)
    one = torch.ones(1, 8, dtype=torch.float64)
    torch.testing.assert_close(
        ops.covariance(mean, second, one, 0 * one), ops.covariance(plain_mean, plain_second, one, 0 * one)
    )


def test_half_precision_is_summed_in_float32():
    x = torch.full((1, 1, 64, 64), 1.001, dtype=torch.bfloat16)
    mean, second = ops.moments(x, 1, torch.zeros(1))
    assert mean.dtype == second.dtype == torch.float32
    torch.testing.assert_close(mean, x[:, :, 0, 0].float())


def test_the_shift_lies_within_the_data_and_has_no_gradient():
    x = (sample() + 1000).requires_grad_()
    shift = ops.data_shift(x)
    assert not shift.requires_grad
    assert ((x.amin((0, 2, 3)) <= shift) & (shift <= x.amax((0, 2, 3)))).all()


def test_the_shift_of_an_empty_batch_is_zero():
    assert torch.equal(ops.data_shift(torch.empty(0, 3, 4, 4)), torch.zeros(3))


def test_moments_pass_gradcheck():
    shift = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ops.moments(x, 2, shift), sample(2, 4, 3, 2).requires_grad_())
