"""The coefficients by a backend's own chain are those of plain PyTorch, forward and backward."""
import pytest
import torch
from chain_problem import assert_close, by_autograd, by_backend, problem, usual_of
from torch import nn

from ce_mm import ops
from ce_mm.layers import CENorm


@pytest.fixture(params=["numba", "triton"])
def name(request):
    """Of each backend that has a chain."""
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture
def device(name):
    """Where it runs; Triton's interpreter stands in for a GPU."""
    return "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"


def assert_exact(use, name, device, **shape):
    exact = by_autograd(problem(device=device, **shape))
    use(name)
    assert_close(by_backend(problem(device=device, dtype=torch.float32, **shape)), exact)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "shape",
    [dict(n=3, c=32, g=16), dict(n=40, c=64, g=16), dict(n=2, c=58, g=2), dict(n=2, c=18, g=6), dict(n=1, c=24, g=8)],
    ids=str,
)
def test_coefficients_averages_and_gradients_agree_with_float64(use, name, device, shape, iterations):
    assert_exact(use, name, device, **shape, iterations=iterations)


def test_a_norm_without_parameters_agrees(use, name, device):
    assert_exact(use, name, device, affine=False)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [dict(n=3, c=32, g=16), dict(n=40, c=58, g=2)], ids=str)
def test_of_the_averages_they_agree_too(use, name, device, shape, affine):
    assert_exact(use, name, device, **shape, affine=affine, learns=False)


@pytest.mark.parametrize("learns", [True, False])
def test_gradients_need_not_be_dense(use, name, device, learns):
    use(name)
    p, strided = (problem(device=device, dtype=torch.float32, learns=learns) for _ in range(2))
    strided.douts = [torch.stack([dout] * 2, -1)[..., 0] for dout in p.douts]
    assert all(map(torch.equal, by_backend(strided), by_backend(p)))


@pytest.mark.parametrize("shape", [dict(c=24, g=8), dict(c=18, g=6), dict(c=32, g=16)], ids=str)
def test_without_an_eps_in_the_norm_tiles_that_are_not_full_give_finite_numbers(use, name, device, shape):
    assert_exact(use, name, device, **shape, norm_eps=0.0)


def test_where_the_mean_variance_is_clamped_no_gradient_passes_it(use, name, device):
    p, q = (problem(device=device, tiny=True, dtype=torch.float32, norm_eps=1.0) for _ in range(2))
    expected = by_autograd(p)
    moved = 1 + 0.75 * (ops.MIN_VARIANCE**-0.5 - 1)
    torch.testing.assert_close(p.layer.ir.running_inv_std_scale.item(), moved)
    use(name)
    assert_close(by_backend(q)[:8], [value.double() for value in expected[:8]])


def test_two_runs_give_the_same_bits(use, name, device):
    use(name)
    one, two = (by_backend(problem(device=device, dtype=torch.float32)) for _ in range(2))
    assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_of_a_batch_that_is_not_finite_no_average_moves(use, name, device, poison):
    use(name)
    p = problem(device=device, dtype=torch.float32)
    before = [buffer.clone() for buffer in p.layer.buffers()]
    p.moments.instance[0, 1, 3] = poison
    usual = usual_of(p)
    given = p.moments.shift, usual.parameters, usual.averages, usual.chain
    coefficients, finite, _ = usual.backend.coefficients(*p.moments[1:3], *given, checks=False)
    assert not finite
    assert coefficients.bias.isnan().any()
    assert all(map(torch.equal, p.layer.buffers(), before))


def test_buffers_that_a_backward_still_needs_are_missed_by_it(use, name, device):
    use(name)
    layer, x = CENorm(16).to(device), torch.randn(2, 16, 3, 3, device=device)
    layer.norm.eval()
    y = layer(x)
    layer.norm.train()
    layer(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_trains_the_same(use, name, device, dtype, frozen):
    def trained(backend):
        use(backend)
        torch.manual_seed(0)
        layer = CENorm(32).to(device)
        nn.init.normal_(layer.norm.weight)
        layer.norm.train(not frozen)
        x = torch.randn(3, 32, 5, 7, device=device).to(dtype).requires_grad_()
        y = layer(x, rectifier=ops.RELU)
        y.square().sum().backward()
        return y, x.grad, *(p.grad for p in layer.parameters()), *layer.buffers(), torch.tensor(layer.finite is None)

    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for mine, theirs in zip(trained(name), trained("plain"), strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine.double() - theirs.double()).abs().max() <= tolerance * theirs.double().abs().max()


@pytest.mark.parametrize("ratio", [10, 1e3, 1e4])
def test_samples_that_are_nearly_flat_but_far_from_each_other_cost_no_precision(use, name, device, ratio):
    def trained(backend, dtype):
        use(backend)
        torch.manual_seed(0)
        layer = CENorm(32).to(device, dtype)
        x = (torch.randn(8, 32, 7, 7) + ratio * torch.randn(8, 32, 1, 1)).to(device, dtype).requires_grad_()
        y = layer(x)
        return y, *torch.autograd.grad(y, [x, *layer.parameters()], torch.randn(x.shape).to(device, dtype))

    for mine, exact in zip(trained(name, torch.float32), trained("plain", torch.float64), strict=True):
        assert (mine - exact).abs().max() <= 2e-5 * exact.abs().max()
