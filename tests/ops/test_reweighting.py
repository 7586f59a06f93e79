import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ce_mm import ops


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gate(channels=8, hidden=3):
    return ops.Gate(draw(hidden, channels), draw(hidden, seed=1), draw(hidden, seed=2), draw(channels, hidden), 1e-5)


@pytest.mark.parametrize(
    ("channels", "asked", "given"), [(64, 16, 16), (58, 16, 2), (24, 16, 8), (7, 16, 1), (10, 6, 1)]
)
def test_the_group_size_is_halved_until_it_divides_the_channels(channels, asked, given):
    assert ops.fit_group_size(channels, asked) == given


def test_a_batch_norm_without_parameters_only_normalises():
    scale, offset = ops.batch_norm_affine(draw(5), draw(5).square(), None, None, 1e-3)
    expected = 1 / (draw(5).square() + 1e-3).sqrt()
    torch.testing.assert_close(scale, expected[None])
    torch.testing.assert_close(offset, -(expected * draw(5))[None])


def test_the_batch_statistics_are_pytorch_s_and_pass_gradcheck():
    x = draw(3, 8, 4, 5)
    instance = ops.moments(x, 1, products=False).instance.requires_grad_()
    expected = torch.var_mean(x, (0, 2, 3), correction=0)
    torch.testing.assert_close(ops.batch_statistics(instance), expected[::-1])
    assert torch.autograd.gradcheck(ops.batch_statistics, instance)


@pytest.mark.parametrize("affine", [True, False])
def test_the_batch_norm_passes_gradcheck(affine):
    inputs = [value.requires_grad_() for value in (draw(5), draw(5, seed=1).square() + 0.1)]
    inputs += [draw(5, seed=k).requires_grad_() if affine else None for k in (2, 3)]
    assert torch.autograd.gradcheck(ops.batch_norm_affine, [*inputs, 1e-3])


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


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_reweighting_is_the_gate_of_the_instance_variances_over_their_mean_spread(correction, samples):
    x, a, (fc1, ln_weight, ln_bias, fc2, eps) = draw(3, 8, 4, 6), draw(samples, 8), gate()
    moments = ops.moments(x, 1, shift=draw(8, seed=1), products=False)
    variance = (a[..., None, None] * x).var((2, 3), correction=correction)
    hidden = F.layer_norm(variance @ fc1.T, (3,), ln_weight, ln_bias, eps)
    weights = torch.sigmoid(hidden.relu() @ fc2.T)
    bessel = 24 / (24 - correction)
    of_batch, scale = ops.reweighting(moments.instance, a, gate(), bessel, None)
    torch.testing.assert_close(scale, variance.mean().rsqrt()[None])
    torch.testing.assert_close(of_batch, weights * scale)
    running = torch.tensor([0.7], dtype=torch.float64)
    torch.testing.assert_close(ops.reweighting(moments.instance, a, gate(), bessel, running)[0], weights * running)


@pytest.mark.parametrize("given", [None, torch.tensor([0.7], dtype=torch.float64)], ids=["batch", "given"])
@pytest.mark.parametrize("spread", [1.0, 1e-4], ids=["usual", "clamped"])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_reweighting_passes_gradcheck(given, spread, samples):
    mean, scale = draw(3, 8), draw(samples, 8, seed=1) * spread
    instance = torch.stack([mean, draw(3, 8, seed=2).abs()])
    inputs = [value.requires_grad_() for value in (instance, scale)]
    weights = [value.requires_grad_() for value in gate()[:4]]

    given = [] if given is None else [given.clone().requires_grad_()]

    def function(instance, scale, fc1, ln_weight, ln_bias, fc2, inv_std_scale=None):
        return ops.reweighting(instance, scale, ops.Gate(fc1, ln_weight, ln_bias, fc2, 1e-5), 1.25, inv_std_scale)[0]

    assert torch.autograd.gradcheck(function, [*inputs, *weights, *given])


@pytest.mark.parametrize("samples", [1, 3])
def test_the_coefficients_are_those_of_the_two_branches_applied_to_the_base_norm(samples):
    a, b, d, p = draw(samples, 8), draw(samples, 8, seed=1), draw(3, 8, seed=2), draw(2, 4, 4, seed=3)
    mix = draw(1, seed=4)
    z = draw(3, 8, 1, 2, seed=5)
    base = a[..., None, None] * z + b[..., None, None]
    ratio = mix.sigmoid()
    decorrelated = torch.einsum("ij,njhw->nihw", torch.block_diag(*p), base)
    reweighted = d[..., None, None] * base
    apply = lambda *branches: ops.group_affine(z, 0 * a[0], *ops.equilibrium_affine(a, b, *branches))  # noqa: E731
    torch.testing.assert_close(apply(p, d, mix), ratio * decorrelated + (1 - ratio) * reweighted)
    torch.testing.assert_close(apply(p, None, None), decorrelated)
    torch.testing.assert_close(apply(None, d, None), reweighted)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_coefficients_pass_gradcheck(samples):
    shapes = [(samples, 8), (samples, 8), (2, 4, 4), (3, 8), (1,)]
    inputs = [draw(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(ops.equilibrium_affine, inputs)
