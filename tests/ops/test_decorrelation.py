import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ce_mm import ops


def covariance(g=4, batch=3, seed=0):
    root = torch.randn(batch, g, 2 * g, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.transpose(-1, -2)


def test_three_steps_are_the_recursion_of_the_paper():
    sigma = covariance()
    normalised = sigma / sigma.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
    p = torch.eye(4, dtype=torch.float64).expand(3, 4, 4)
    for _ in range(3):
        p = (3 * p - p @ p @ p @ normalised) / 2
    torch.testing.assert_close(ops.newton_schulz(sigma, 3), p)


def test_ten_steps_give_the_inverse_square_root_of_the_normalised_matrix():
    sigma = covariance()
    values, vectors = torch.linalg.eigh(sigma / sigma.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None])
    exact = vectors @ torch.diag_embed(values.rsqrt()) @ vectors.transpose(-1, -2)
    torch.testing.assert_close(ops.newton_schulz(sigma, 10), exact)


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 100), iterations=st.integers(1, 5))
def test_the_result_is_symmetric_and_does_not_depend_on_the_scale(scale, seed, iterations):
    sigma = covariance(seed=seed)
    p = ops.newton_schulz(sigma, iterations)
    torch.testing.assert_close(p, p.transpose(-1, -2))
    torch.testing.assert_close(ops.newton_schulz(scale * sigma, iterations), p)


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_newton_schulz_passes_gradcheck(iterations):
    assert torch.autograd.gradcheck(lambda s: ops.newton_schulz(s, iterations), covariance(3, 2).requires_grad_())
