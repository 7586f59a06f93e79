"""A layer and its moments, and what a chain of coefficients makes of them."""
import torch

from ce_mm import ops
from ce_mm.layers import CENorm
from ce_mm.ops.backends import plain


def problem(
    n=3, c=32, g=16, positions=9, affine=True, tiny=False, dtype=torch.float64, iterations=3, norm_eps=1e-5,
    device="cpu",
):  # fmt: skip
    """A layer, moments and gradients of the coefficients; ``tiny``: of a map of next to no variance."""
    generator = torch.Generator().manual_seed(n * c + g)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x = (1e-4 * draw(n, c, positions, 1) if tiny else 1.5 * draw(n, c, positions, 1) + draw(c, 1, 1)).to(device)
    norm = dict(type="BN", affine=affine, eps=norm_eps)
    layer = CENorm(c, norm, group_size=g, iterations=iterations, correction=1).double()
    for parameter in layer.parameters():
        parameter.data = 1 + 0.2 * draw(*parameter.shape) if parameter.dim() == 1 else draw(*parameter.shape) / c**0.5
    layer.to(device, dtype)
    instance, second = plain.moments(x, x.new_zeros(c), g, True, False)
    instance, second = (value.to(dtype).requires_grad_() for value in (instance, second))
    moments = ops.Moments(x.new_zeros(c, dtype=dtype), instance, second, None, positions)
    results = draw(1, c // g, g, g), draw(n, c), draw(n, c)
    return layer, moments, [result.to(device, dtype) for result in results]


def results_and_gradients(layer, moments, douts, known=ops.UNKNOWN):
    """Coefficients, the statistics used, and the gradients of all that is given, but of E not where it is not used."""
    coefficients, used = ops.coefficients(moments, layer.base, layer.bd, layer.ir, layer.mix, known)
    inputs = [moments.instance, *([moments.second] if known is ops.UNKNOWN else []), *layer.parameters()]
    return *coefficients, *used[:4], *torch.autograd.grad(coefficients, inputs, douts)


def assert_close(mine, exact, tolerance=2e-5):
    for one, other in zip(mine, exact, strict=True):
        assert (one.shape, one.dtype) == (other.shape, torch.float32)
        if other.numel():
            assert (one.double() - other).abs().max() <= tolerance * other.abs().max().clamp_min(1e-30)
