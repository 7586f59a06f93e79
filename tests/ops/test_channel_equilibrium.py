import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ce_mm import ops


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("channels", "asked", "given"), [(64, 16, 16), (58, 16, 2), (24, 16, 8), (7, 16, 1), (10, 6, 1)]
)
def test_the_group_size_is_halved_until_it_divides_the_channels(channels, asked, given):
    assert ops.fit_group_size(channels, asked) == given


@given(samples=st.sampled_from([1, 3]), seed=st.integers(0, 50))
def test_the_covariance_is_that_of_the_materialised_map(samples, seed):
    x, a, b = draw(3, 8, 4, 5, seed=seed), draw(samples, 8, seed=seed + 1), draw(samples, 8, seed=seed + 2)
    mean, second = ops.moments(x, 4, draw(8))
    base = a[..., None, None] * (x - draw(8)[:, None, None]) + b[..., None, None]
    result = ops.covariance(mean, second, a, b)
    for k in range(2):
        rows = base[:, 4 * k : 4 * k + 4].transpose(0, 1).flatten(1)
        torch.testing.assert_close(result[k], torch.cov(rows, correction=0))


@pytest.mark.parametrize("correction", [0, 1])
def test_the_instance_variance_is_pytorch_s(correction):
    x = draw(3, 5, 4, 6)
    mean, second = ops.moments(x, 1, draw(5, seed=1))
    result = ops.instance_variance(mean, second.flatten(1), 24, correction)
    torch.testing.assert_close(result, x.var(dim=(2, 3), correction=correction))


def test_the_unbiased_variance_of_one_position_is_zero_not_infinite():
    assert torch.equal(ops.instance_variance(torch.ones(1, 1), torch.ones(1, 1), 1, 1), torch.zeros(1, 1))


def test_the_coefficients_are_those_of_the_two_branches_applied_to_the_base_norm():
    a, b, d, p, mix = draw(1, 8), draw(1, 8, seed=1), draw(3, 8, seed=2), draw(2, 4, 4, seed=3), draw(1, seed=4)
    z = draw(3, 8, 1, 2, seed=5)
    base = a[..., None, None] * z + b[..., None, None]
    ratio = mix.sigmoid()
    decorrelated = torch.einsum("ij,njhw->nihw", torch.block_diag(*p), base)
    reweighted = d[..., None, None] * base
    apply = lambda *branches: ops.group_affine(z, *ops.equilibrium_affine(a, b, *branches), 0 * a[0])  # noqa: E731
    torch.testing.assert_close(apply(p, d, mix), ratio * decorrelated + (1 - ratio) * reweighted)
    torch.testing.assert_close(apply(p, None, None), decorrelated)
    torch.testing.assert_close(apply(None, d, None), reweighted)
