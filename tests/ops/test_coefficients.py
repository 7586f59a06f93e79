"""The chain from moments to the coefficients of the group affine."""
import pytest
import torch
from torch import nn

from ce_mm import ops
from ce_mm.layers import BatchDecorrelation, InstanceReweighting
from ce_mm.ops import base_norms


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer(channels=8):
    """Base norm, both branches and the logit of λ, in float64."""
    norm, bd = nn.BatchNorm2d(channels, eps=1e-3), BatchDecorrelation(channels, 4, eps=1e-2)
    ir, mix = InstanceReweighting(channels, 3, correction=1), draw(1, seed=7).requires_grad_()
    for seed, parameter in enumerate((*norm.parameters(), *ir.parameters())):
        parameter.data = draw(*parameter.shape, seed=seed)
    return base_norms.BatchNorm(norm.double()), bd.double(), ir.double(), mix


def some_moments(n=3, c=8):
    moments = ops.moments(draw(n, c, 4, 5, seed=9), 4)
    instance, second = (value.detach().requires_grad_() for value in moments[1:3])
    return moments._replace(instance=instance, second=second)


def test_it_is_the_chain_of_its_steps():
    moments, (base, bd, ir, mix) = some_moments(), layer()
    instance, second = moments[1:3]
    coefficients, found = ops.coefficients(moments, base, bd, ir, mix)
    mean, variance = ops.batch_statistics(instance)
    scale, offset = ops.batch_norm_affine(mean, variance, base.norm.weight, base.norm.bias, 1e-3)
    whitening = ops.newton_schulz(ops.covariance(mean, second, scale, 1e-2), 3)
    gate = ops.Gate.of(ir.fc1, ir.ln, ir.fc2, mix.dtype)
    weights, inv_std_scale = ops.reweighting(instance, scale, gate, 20 / 19, None)
    assert all(map(torch.equal, coefficients, ops.equilibrium_affine(scale, offset, whitening, weights, mix)))
    assert all(map(torch.equal, found[:4], (mean, variance, whitening, inv_std_scale)))
    assert found.values == 3 * 4 * 5


@pytest.mark.parametrize("known", [False, True], ids=["of the batch", "known"])
def test_it_passes_gradcheck(known):
    moments, (base, bd, ir, mix) = some_moments(), layer()
    statistics = ops.coefficients(moments, base, bd, ir, mix)[1] if known else ops.UNKNOWN
    given = [value.detach().requires_grad_() for value in statistics[:4] if value is not None]
    parameters = [*base.norm.parameters(), *ir.parameters()]

    def chain(instance, second, mix, *rest):  # the parameters are changed where they lie
        known = ops.Statistics(*rest[len(parameters) :])
        return ops.coefficients(moments._replace(instance=instance, second=second), base, bd, ir, mix, known)[0]

    assert torch.autograd.gradcheck(chain, [moments.instance, moments.second, mix, *parameters, *given])


@pytest.mark.parametrize("branches", [("bd", "ir"), ("bd",), ("ir",), ()], ids=str)
def test_with_the_statistics_of_the_batch_given_back_the_coefficients_stay(branches):
    moments, (base, bd, ir, mix) = some_moments(), layer()
    bd, ir = bd if "bd" in branches else None, ir if "ir" in branches else None
    coefficients, found = ops.coefficients(moments, base, bd, ir, mix)
    again, used = ops.coefficients(moments._replace(second=None), base, bd, ir, mix, found)
    assert used == found
    for one, other in zip(again, coefficients, strict=True):
        assert one is other is None or torch.equal(one, other)


def test_of_another_map_than_the_layer_s_the_whitening_alone_is_taken():
    """As of its max pool; ε grows as the positions get fewer, and the mean is that map's own."""
    moments, (base, bd, ir, mix) = some_moments(), layer()
    seen = ops.moments(draw(3, 8, 2, 2, seed=11), 4)
    _, of_both = ops.coefficients(moments, base, bd, ir, mix, seen=seen)
    _, of_one = ops.coefficients(moments, base, bd, ir, mix)
    assert all(map(torch.equal, of_both[:2], of_one[:2]))
    assert torch.equal(of_both.inv_std_scale, of_one.inv_std_scale)
    scale, _ = base.affine(moments, *of_one[:2])
    sigma = ops.covariance(seen.instance[0].mean(0), seen.second, scale, 1e-2 * (4 * 5) / (2 * 2))
    torch.testing.assert_close(of_both.whitening, ops.newton_schulz(sigma, 3))


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
