"""A layer and its moments, and what a chain of coefficients, forward and backward, makes of them."""
from types import SimpleNamespace

import torch

from ce_mm import ops
from ce_mm.layers import CENorm
from ce_mm.ops.backends import plain


def problem(
    n=3, c=32, g=16, positions=9, affine=True, tiny=False, dtype=torch.float64, iterations=3, norm_eps=1e-5,
    learns=True, device="cpu",
):  # fmt: skip
    """A layer, moments and gradients of the coefficients; ``tiny``: of a map of next to no variance."""
    generator = torch.Generator().manual_seed(n * c + g)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)  # noqa: E731
    x = 1e-4 * draw(n, c, positions, 1) if tiny else 1.5 * draw(n, c, positions, 1) + draw(c, 1, 1)
    norm = dict(type="BN", affine=affine, eps=norm_eps, momentum=0.5)
    layer = CENorm(c, norm, group_size=g, iterations=iterations, correction=1, momentum=0.75).double()
    for tensor in (*layer.parameters(), layer.norm.running_mean, layer.bd.running_whitening):
        tensor.data = 1 + 0.2 * draw(*tensor.shape) if tensor.dim() == 1 else draw(*tensor.shape) / c**0.5
    layer.norm.running_var.copy_(draw(c) ** 2 + 0.1)
    layer.to(device, dtype).norm.train(learns)
    shift = x.new_zeros(c) if tiny else draw(c)
    instance, second = plain.moments(x, shift, g, True, False)
    douts = draw(1, c // g, g, g), draw(n, c), draw(n, c)
    moments = ops.Moments(*(value.to(dtype) for value in (shift, instance, second)), None, positions)
    return SimpleNamespace(layer=layer, learns=learns, moments=moments, douts=[dout.to(dtype) for dout in douts])


def averages_of(layer):
    """Those that the chain moves."""
    return layer.norm.running_mean, layer.norm.running_var, layer.bd.running_whitening, layer.ir.running_inv_std_scale


def usual_of(p):
    """The layer as one node would compute it, of a map that has these moments."""
    _, n, c = p.moments.instance.shape
    x = p.moments.shift.new_empty(n, c, p.moments.positions, 1)
    layer = p.layer
    return ops.as_usual(x, None, layer.base, layer.bd, layer.ir, layer.mix, layer.momentum, p.learns)


def by_backend(p, checks=False):
    """Coefficients, averages after it, S, s_n and o_n of the gradient of x, and the gradients of the parameters."""
    usual, (shift, instance, second, _, _) = usual_of(p), p.moments
    with torch.no_grad():
        given = shift, usual.parameters, usual.averages, usual.chain
        found = usual.backend.coefficients(instance, second if p.learns else None, *given, checks=checks)
        if found is None:
            return None
        coefficients, finite, kept = found
        back = usual.backend.coefficients_backward
        of_x, of_parameters = back(kept, usual.parameters, usual.chain, *p.douts)
    assert (finite is not None) == p.learns
    given = [one for one, parameter in zip(of_parameters, usual.parameters, strict=True) if parameter is not None]
    return *coefficients, *averages_of(p.layer), *(value for value in of_x if value is not None), *given


def by_autograd(p):
    """The same in PyTorch's calls, from the chain and the gradients that autograd finds."""
    layer, (shift, *moments, _, positions) = p.layer, p.moments
    base, known, n = layer.base, ops.UNKNOWN, moments[0].shape[1]
    instance, second = (value.detach().requires_grad_() for value in moments)
    if not p.learns:
        others = layer.bd.running_whitening, layer.ir.running_inv_std_scale
        known = ops.Statistics(*base.running(shift), *others)
    given = ops.Moments(shift, instance, second, None, positions)
    coefficients, found = ops.coefficients(given, base, layer.bd, layer.ir, layer.mix, known)
    if p.learns:
        others = (layer.bd.running_whitening, found.whitening), (layer.ir.running_inv_std_scale, found.inv_std_scale)
        base.learn(found, shift, [ops.Average(*both, layer.momentum) for both in others])
    parameters = (*base.parameters(shift.dtype), layer.ir.fc1.weight, layer.ir.ln.weight, layer.ir.ln.bias)
    parameters = [value for value in (*parameters, layer.ir.fc2.weight, layer.mix) if value is not None]
    inputs = [instance, *([second] if p.learns else []), *parameters]
    (dmean, dvariance), *others = torch.autograd.grad(coefficients, inputs, p.douts)
    of_x = [2 * dvariance / positions, (dmean - 2 * instance[0] * dvariance) / positions]
    if p.learns:
        dsecond = others.pop(0)
        of_x.insert(0, (dsecond + dsecond.mT) / (n * positions))
    return *coefficients, *averages_of(layer), *of_x, *others


def assert_close(mine, exact, tolerance=2e-5):
    for one, other in zip(mine, exact, strict=True):
        assert one.shape == other.shape
        assert one.dtype == torch.float32
        if other.numel():
            assert (one.double() - other).abs().max() <= tolerance * other.abs().max().clamp_min(1e-30)
