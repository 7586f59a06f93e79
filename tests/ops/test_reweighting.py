"""The gates of instance reweighting, from moments, are those of the map."""
import pytest
import torch
import torch.nn.functional as F

from ce_mm import ops


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gate(channels=8, hidden=3):
    return ops.Gate(draw(hidden, channels), draw(hidden, seed=1), draw(hidden, seed=2), draw(channels, hidden), 1e-5)


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
