"""Σ from moments is that of the normalised map, and its inverse square root that of the paper's recursion."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ce_mm import ops


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def applied(scale, offset, x, shift):
    return scale[..., None, None] * (x - shift[..., None, None]) + offset[..., None, None]


@pytest.mark.parametrize(
    ("channels", "asked", "given"), [(64, 16, 16), (58, 16, 2), (24, 16, 8), (7, 16, 1), (10, 6, 1)]
)
def test_the_group_size_is_halved_until_it_divides_the_channels(channels, asked, given):
    assert ops.fit_group_size(channels, asked) == given


@given(n=st.integers(1, 3), seed=st.integers(0, 50))
def test_the_covariance_is_that_of_the_materialised_map(n, seed):
    x, a, shift = draw(n, 8, 4, 5, seed=seed), draw(1, 8, seed=seed + 1), draw(8, seed=seed + 2)
    moments = ops.moments(x, 4, shift=shift)
    result = ops.covariance(moments.instance[0].mean(0), moments.second, a, 0.5)
    base = a[..., None, None] * x
    for k in range(2):
        rows = base[:, 4 * k : 4 * k + 4].transpose(0, 1).flatten(1)
        torch.testing.assert_close(result[k], torch.cov(rows, correction=0) + 0.5 * torch.eye(4, dtype=x.dtype))


def test_the_covariance_passes_gradcheck():
    inputs = [value.requires_grad_() for value in (draw(8), draw(1, 2, 4, 4), draw(1, 8, seed=1))]
    assert torch.autograd.gradcheck(lambda *values: ops.covariance(*values, 0.1), inputs)


@given(n=st.integers(1, 4), seed=st.integers(0, 50))
def test_the_sample_covariance_is_that_of_the_materialised_map(n, seed):
    x, shift = draw(n, 8, 4, 5, seed=seed), draw(8, seed=seed + 1)
    scale, offset = draw(n, 8, seed=seed + 2), draw(n, 8, seed=seed + 3)
    moments = ops.moments(x, 4, shift=shift, per_sample=True)
    result = ops.sample_covariance(moments.instance[0], moments.second, scale, offset, 0.5)
    base = applied(scale, offset, x, shift)
    for k in range(2):
        rows = base[:, 4 * k : 4 * k + 4].transpose(0, 1).flatten(1)
        torch.testing.assert_close(result[k], torch.cov(rows, correction=0) + 0.5 * torch.eye(4, dtype=x.dtype))


def test_the_sample_covariance_passes_gradcheck():
    inputs = [draw(3, 8), draw(3, 2, 4, 4, seed=1), draw(3, 8, seed=2), draw(3, 8, seed=3)]
    inputs = [value.requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(lambda *values: ops.sample_covariance(*values, 0.1), inputs)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("parameters", [True, False])
def test_pooled_moments_become_those_of_the_pooled_map(per_sample, parameters):
    n = 3 if per_sample else 1
    x, gamma = draw(3, 8, 5, 4) + 2, draw(8, seed=1) if parameters else None
    scale = draw(n, 8, seed=2).abs() * (1 if gamma is None else gamma.sign())  # a has the sign of γ
    of_x = ops.moments(x, 4, per_sample=per_sample)
    pooled = ops.pooled_moments(x, of_x, gamma, 4, per_sample)
    expected = F.max_pool2d(applied(scale, draw(n, 8, seed=3), x, of_x.shift), 2)
    mine = scale * pooled.instance[0] + draw(n, 8, seed=3), scale.square() * pooled.instance[1]
    torch.testing.assert_close(mine, (expected.mean((2, 3)), expected.var((2, 3), correction=0)))
    assert pooled.positions == 4
    if not per_sample:
        sigma = ops.covariance(pooled.instance[0].mean(0), pooled.second, scale, 0.5)
        rows = expected.transpose(0, 1).reshape(2, 4, -1)
        exact = torch.stack([torch.cov(group, correction=0) for group in rows])
        torch.testing.assert_close(sigma, exact + 0.5 * torch.eye(4, dtype=x.dtype))


def some_sigma(g=4, batch=3, seed=0):
    root = torch.randn(batch, g, 2 * g, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.transpose(-1, -2)


def test_three_steps_are_the_recursion_of_the_paper():
    sigma = some_sigma()
    normalised = sigma / sigma.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
    p = torch.eye(4, dtype=torch.float64).expand(3, 4, 4)
    for _ in range(3):
        p = (3 * p - p @ p @ p @ normalised) / 2
    torch.testing.assert_close(ops.newton_schulz(sigma, 3), p)


def test_ten_steps_give_the_inverse_square_root_of_the_normalised_matrix():
    sigma = some_sigma()
    values, vectors = torch.linalg.eigh(sigma / sigma.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None])
    exact = vectors @ torch.diag_embed(values.rsqrt()) @ vectors.transpose(-1, -2)
    torch.testing.assert_close(ops.newton_schulz(sigma, 10), exact)


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 100), iterations=st.integers(1, 5))
def test_the_result_is_symmetric_and_does_not_depend_on_the_scale(scale, seed, iterations):
    sigma = some_sigma(seed=seed)
    p = ops.newton_schulz(sigma, iterations)
    torch.testing.assert_close(p, p.transpose(-1, -2))
    torch.testing.assert_close(ops.newton_schulz(scale * sigma, iterations), p)


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_newton_schulz_passes_gradcheck(iterations):
    assert torch.autograd.gradcheck(lambda s: ops.newton_schulz(s, iterations), some_sigma(3, 2).requires_grad_())
