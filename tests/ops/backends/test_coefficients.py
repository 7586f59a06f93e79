"""The coefficients by a backend's own chain are those of plain PyTorch, forward and backward."""
import pytest
import torch
from chain_problem import assert_close, problem, results_and_gradients
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


def assert_exact(use, name, device, known=lambda dtype: ops.UNKNOWN, **shape):
    use("plain")
    exact = results_and_gradients(*problem(device=device, **shape), known(torch.float64))
    use(name)
    mine = results_and_gradients(*problem(device=device, dtype=torch.float32, **shape), known(torch.float32))
    assert_close(mine, exact)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "shape",
    [dict(n=3, c=32, g=16), dict(n=40, c=64, g=16), dict(n=2, c=58, g=2), dict(n=2, c=18, g=6), dict(n=1, c=24, g=8)],
    ids=str,
)
def test_the_coefficients_and_their_gradients_agree_with_float64(use, name, device, shape, iterations):
    assert_exact(use, name, device, **shape, iterations=iterations)


def test_a_norm_without_parameters_agrees(use, name, device):
    assert_exact(use, name, device, affine=False)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [dict(n=3, c=32, g=16), dict(n=40, c=58, g=2), dict(n=0, c=16, g=16)], ids=str)
def test_with_known_statistics_the_coefficients_and_gradients_agree(use, name, device, shape, affine):
    c, g = shape["c"], shape["g"]
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(*shape, generator=generator).double().to(device)  # noqa: E731
    known = draw(c), draw(c) + 0.1, draw(c // g, g, g), draw(1) + 1
    assert_exact(
        use, name, device, lambda dtype: ops.Statistics(*(value.to(dtype) for value in known)), **shape, affine=affine
    )


def test_known_statistics_that_depend_on_the_parameters_pass_their_gradient_on(use, name, device):
    def gradients(backend, dtype):
        use(backend)
        layer, moments, douts = problem(device=device, dtype=dtype)
        of_batch = ops.coefficients(moments, layer.base, layer.bd, layer.ir, layer.mix)[1]
        whitening, inv_std_scale = (2 * layer.weight.sum() * value.detach() for value in of_batch[2:4])
        known = ops.Statistics(*(value.detach() for value in of_batch[:2]), whitening, inv_std_scale)
        coefficients, _ = ops.coefficients(moments, layer.base, layer.bd, layer.ir, layer.mix, known)
        return torch.autograd.grad(coefficients, layer.weight, douts)

    assert_close(gradients(name, torch.float32), gradients("plain", torch.float64))


@pytest.mark.parametrize("names", [("mean", "variance"), ("whitening",), ("inv_std_scale",)], ids=str)
def test_where_some_statistics_are_known_the_others_are_those_of_the_batch(use, name, device, names):
    def found(backend, dtype):
        use(backend)
        layer, moments, _ = problem(device=device, dtype=dtype)
        of_batch = ops.coefficients(moments, layer.base, layer.bd, layer.ir, layer.mix)[1]
        known = ops.Statistics(**{known: 2 * getattr(of_batch, known).detach() for known in names})
        coefficients, statistics = ops.coefficients(moments, layer.base, layer.bd, layer.ir, layer.mix, known)
        return *coefficients, *statistics[:4]

    assert_close(found(name, torch.float32), found("plain", torch.float64))


def test_tensors_need_not_be_dense(use, name, device):
    def strided(value):
        return torch.stack([value.detach()] * 2, -1)[..., 0].requires_grad_(value.requires_grad)

    layer, moments, douts = problem(device=device, dtype=torch.float32)
    shapes = (2, 32), (2, 32), (2, 2, 16, 16), (2, 1)
    known = ops.Statistics(*(torch.rand(*shape).to(device).movedim(0, -1)[..., 0] for shape in shapes))
    use(name)
    expected = results_and_gradients(layer, moments, douts)
    of_known = results_and_gradients(layer, moments, douts, ops.Statistics(*map(torch.clone, known[:4])))
    for parameter in layer.parameters():
        parameter.data = strided(parameter).detach()
    moments = moments._replace(instance=strided(moments.instance), second=strided(moments.second))
    douts = [strided(dout) for dout in douts]
    assert all(map(torch.equal, results_and_gradients(layer, moments, douts), expected))
    assert all(map(torch.equal, results_and_gradients(layer, moments, douts, known), of_known))


@pytest.mark.parametrize("shape", [dict(c=24, g=8), dict(c=18, g=6), dict(c=32, g=16)], ids=str)
def test_without_an_eps_in_the_norm_tiles_that_are_not_full_give_finite_numbers(use, name, device, shape):
    assert_exact(use, name, device, **shape, norm_eps=0.0)


def test_where_the_mean_variance_is_clamped_no_gradient_passes_it(use, name, device):
    arguments = problem(device=device, tiny=True, dtype=torch.float32, norm_eps=1.0)
    use("plain")
    expected = results_and_gradients(*arguments)
    torch.testing.assert_close(expected[6].item(), ops.MIN_VARIANCE**-0.5)
    use(name)
    assert_close(results_and_gradients(*arguments)[:8], [r.double() for r in expected[:8]])


def test_two_runs_give_the_same_bits(use, name, device):
    use(name)
    one, two = (results_and_gradients(*problem(device=device, dtype=torch.float32)) for _ in range(2))
    assert all(map(torch.equal, one, two))


def test_a_value_that_is_not_finite_is_seen_in_the_statistics(use, name, device):
    use(name)
    layer, moments, douts = problem(device=device, dtype=torch.float32)
    with torch.no_grad():
        moments.instance[0, 1, 3] = torch.nan
    found = results_and_gradients(layer, moments, douts)
    assert found[3].isnan().nonzero().tolist() == [[3]]
    assert found[6].isnan().all()


@pytest.mark.parametrize("used", range(3))
def test_a_coefficient_that_nobody_uses_has_no_part_in_the_gradients(use, name, device, used):
    def gradients(backend, dtype):
        use(backend)
        layer, moments, douts = problem(device=device, dtype=dtype)
        coefficients, _ = ops.coefficients(moments, layer.base, layer.bd, layer.ir, layer.mix)
        return torch.autograd.grad(coefficients[used], (moments.instance, layer.weight), douts[used])

    assert_close(gradients(name, torch.float32), gradients("plain", torch.float64))


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
