"""The coefficients by Triton's kernels are those of plain PyTorch: on a GPU where there is one, else interpreted."""
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from triton_modules import load

from ce_mm import ops
from ce_mm.layers import CENorm
from ce_mm.ops.backends import plain

triton = pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = ["_base_norm_kernel", "_base_norm_backward_kernel", "_combine_kernel", "_combine_backward_kernel"]


def problem(
    n=3, c=32, g=16, positions=9, affine=True, tiny=False, dtype=torch.float64, iterations=3, norm_eps=1e-5
):  # fmt: skip
    """A layer, moments and gradients of the coefficients; ``tiny``: of a map of next to no variance."""
    generator = torch.Generator().manual_seed(n * c + g)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x = (1e-4 * draw(n, c, positions, 1) if tiny else 1.5 * draw(n, c, positions, 1) + draw(c, 1, 1)).to(DEVICE)
    norm = dict(type="BN", affine=affine, eps=norm_eps)
    layer = CENorm(c, norm, group_size=g, iterations=iterations, correction=1).double()
    for parameter in layer.parameters():
        parameter.data = 1 + 0.2 * draw(*parameter.shape) if parameter.dim() == 1 else draw(*parameter.shape) / c**0.5
    layer.to(DEVICE, dtype)
    instance, second = plain.moments(x, x.new_zeros(c), g, True, False)
    instance, second = (value.to(dtype).requires_grad_() for value in (instance, second))
    moments = ops.Moments(x.new_zeros(c, dtype=dtype), instance, second, None, positions)
    results = draw(1, c // g, g, g), draw(n, c), draw(n, c)
    return layer, moments, [result.to(DEVICE, dtype) for result in results]


def results_and_gradients(layer, moments, douts, known=ops.UNKNOWN):
    """Coefficients, the statistics used, and the gradients of all that is given, but of E not where it is not used."""
    coefficients, used = ops.coefficients(moments, layer.base, layer.bd, layer.ir, layer.mix, known)
    inputs = [moments.instance, *([moments.second] if known is ops.UNKNOWN else []), *layer.parameters()]
    return *coefficients, *used[:4], *torch.autograd.grad(coefficients, inputs, douts)


def assert_close(mine, exact):
    for one, other in zip(mine, exact, strict=True):
        assert (one.shape, one.dtype) == (other.shape, torch.float32)
        if other.numel():
            assert (one.double() - other).abs().max() <= 2e-5 * other.abs().max().clamp_min(1e-30)


def assert_triton_s_are_exact(use, known=lambda dtype: ops.UNKNOWN, **shape):
    use("plain")
    exact = results_and_gradients(*problem(**shape), known(torch.float64))
    use("triton")
    assert_close(results_and_gradients(*problem(**shape, dtype=torch.float32), known(torch.float32)), exact)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "shape",
    [dict(n=3, c=32, g=16), dict(n=40, c=64, g=16), dict(n=2, c=58, g=2), dict(n=2, c=18, g=6), dict(n=1, c=24, g=8)],
    ids=str,
)
def test_the_coefficients_and_their_gradients_agree_with_float64(use, shape, iterations):
    assert_triton_s_are_exact(use, **shape, iterations=iterations)


def test_a_norm_without_parameters_agrees(use):
    assert_triton_s_are_exact(use, affine=False)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [dict(n=3, c=32, g=16), dict(n=40, c=58, g=2), dict(n=0, c=16, g=16)], ids=str)
def test_with_known_statistics_the_coefficients_and_gradients_agree(use, shape, affine):
    c, g = shape["c"], shape["g"]
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(*shape, generator=generator).double().to(DEVICE)  # noqa: E731
    known = draw(c), draw(c) + 0.1, draw(c // g, g, g), draw(1) + 1
    assert_triton_s_are_exact(
        use, lambda dtype: ops.Statistics(*(value.to(dtype) for value in known)), **shape, affine=affine
    )


def test_known_statistics_that_depend_on_the_parameters_pass_their_gradient_on(use):
    def gradients(backend, dtype):
        use(backend)
        layer, moments, douts = problem(dtype=dtype)
        of_batch = ops.coefficients(moments, layer.base, layer.bd, layer.ir, layer.mix)[1]
        whitening, inv_std_scale = (2 * layer.weight.sum() * value.detach() for value in of_batch[2:4])
        known = ops.Statistics(*(value.detach() for value in of_batch[:2]), whitening, inv_std_scale)
        coefficients, _ = ops.coefficients(moments, layer.base, layer.bd, layer.ir, layer.mix, known)
        return torch.autograd.grad(coefficients, layer.weight, douts)

    assert_close(gradients("triton", torch.float32), gradients("plain", torch.float64))


@pytest.mark.parametrize("names", [("mean", "variance"), ("whitening",), ("inv_std_scale",)], ids=str)
def test_where_some_statistics_are_known_the_others_are_those_of_the_batch(use, names):
    def found(backend, dtype):
        use(backend)
        layer, moments, _ = problem(dtype=dtype)
        of_batch = ops.coefficients(moments, layer.base, layer.bd, layer.ir, layer.mix)[1]
        known = ops.Statistics(**{name: 2 * getattr(of_batch, name).detach() for name in names})
        coefficients, statistics = ops.coefficients(moments, layer.base, layer.bd, layer.ir, layer.mix, known)
        return *coefficients, *statistics[:4]

    assert_close(found("triton", torch.float32), found("plain", torch.float64))


def test_tensors_need_not_be_dense(use):
    def strided(value):
        return torch.stack([value.detach()] * 2, -1)[..., 0].requires_grad_(value.requires_grad)

    layer, moments, douts = problem(dtype=torch.float32)
    shapes = (2, 32), (2, 32), (2, 2, 16, 16), (2, 1)
    known = ops.Statistics(*(torch.rand(*shape).to(DEVICE).movedim(0, -1)[..., 0] for shape in shapes))
    use("triton")
    expected = results_and_gradients(layer, moments, douts)
    of_known = results_and_gradients(layer, moments, douts, ops.Statistics(*map(torch.clone, known[:4])))
    for parameter in layer.parameters():
        parameter.data = strided(parameter).detach()
    moments = moments._replace(instance=strided(moments.instance), second=strided(moments.second))
    douts = [strided(dout) for dout in douts]
    assert all(map(torch.equal, results_and_gradients(layer, moments, douts), expected))
    assert all(map(torch.equal, results_and_gradients(layer, moments, douts, known), of_known))


@pytest.mark.parametrize("shape", [dict(c=24, g=8), dict(c=18, g=6), dict(c=32, g=16)], ids=str)
def test_without_an_eps_in_the_norm_tiles_that_are_not_full_give_finite_numbers(use, shape):
    assert_triton_s_are_exact(use, **shape, norm_eps=0.0)


def test_where_the_mean_variance_is_clamped_no_gradient_passes_it(use):
    arguments = problem(tiny=True, dtype=torch.float32, norm_eps=1.0)
    use("plain")
    expected = results_and_gradients(*arguments)
    torch.testing.assert_close(expected[6].item(), ops.MIN_VARIANCE**-0.5)
    use("triton")
    assert_close(results_and_gradients(*arguments)[:8], [r.double() for r in expected[:8]])


def test_the_variance_of_a_single_position_is_exactly_zero(runnable):
    layer, moments, _ = problem(n=2, c=16, dtype=torch.float32)
    instance = torch.stack([moments.instance[0], torch.zeros_like(moments.instance[0])]).detach()
    norm = layer.weight.detach(), layer.bias.detach(), 1e-5
    base = runnable.coefficients.base_norm(instance, moments.second.detach(), None, None, *norm, 1e-5, 3, 1.0)
    assert not base.spread.any()
    assert not base.spread_sums.any()


def test_two_runs_give_the_same_bits(use):
    use("triton")
    one, two = (results_and_gradients(*problem(dtype=torch.float32)) for _ in range(2))
    assert all(map(torch.equal, one, two))


def test_a_value_that_is_not_finite_is_seen_in_the_statistics(use):
    use("triton")
    layer, moments, douts = problem(dtype=torch.float32)
    with torch.no_grad():
        moments.instance[0, 1, 3] = torch.nan
    found = results_and_gradients(layer, moments, douts)
    assert found[3].isnan().nonzero().tolist() == [[3]]
    assert found[6].isnan().all()


@pytest.mark.parametrize("used", range(3))
def test_a_coefficient_that_nobody_uses_has_no_part_in_the_gradients(use, used):
    def gradients(backend, dtype):
        use(backend)
        layer, moments, douts = problem(dtype=dtype)
        coefficients, _ = ops.coefficients(moments, layer.base, layer.bd, layer.ir, layer.mix)
        return torch.autograd.grad(coefficients[used], (moments.instance, layer.weight), douts[used])

    assert_close(gradients("triton", torch.float32), gradients("plain", torch.float64))


def test_a_training_step_takes_few_launches(runnable, monkeypatch):
    launches = Counter()

    class Launches(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            launches["of PyTorch"] += not operator.is_view and "empty" not in operator.name()
            return operator(*args, **kwargs or {})

    monkeypatch.setattr(runnable.coefficients, "_launch", lambda *_, **__: launches.update(["of Triton"]))
    layer, moments, douts = problem(dtype=torch.float32)
    gate = ops.Gate.of(layer.ir.fc1, layer.ir.ln, layer.ir.fc2, torch.float32)
    norm = layer.weight, layer.bias, layer.norm.eps
    with Launches():  # who looks on gets the chain in PyTorch's calls, so the kernels' is called by itself
        results, _ = runnable.coefficients.coefficients(moments, *norm, gate, layer.mix, ops.UNKNOWN, 1e-5, 3, 9 / 8)
        torch.autograd.grad(results, [moments.instance, moments.second, *layer.parameters()], douts)
    assert launches == {"of Triton": 4, "of PyTorch": 11}
    launches.clear()
    with Launches():
        results_and_gradients(layer, moments, douts)
    assert launches["of Triton"] == 0
    assert launches["of PyTorch"] > 120


@pytest.mark.parametrize("change", [dict(g=32), dict(dtype=torch.float64)], ids=str)
def test_what_the_kernels_do_not_take_is_left_to_plain_pytorch(use, runnable, monkeypatch, change):
    for name in KERNELS:
        monkeypatch.setattr(runnable.coefficients, name, None)
    use("triton")
    assert len(results_and_gradients(*problem(**dict(dtype=torch.float32) | change))) == 16


@pytest.mark.parametrize("poison", [None, torch.nan, torch.inf])
def test_the_averages_move_all_or_none(runnable, poison):
    def moved(module):
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator).to(DEVICE)  # noqa: E731
        averages = [ops.Average(draw(1500), draw(1500), 0.1), ops.Average(draw(1500).half(), draw(1500), 0.5)]
        averages.append(ops.Average(draw(90, 4, 4), draw(90, 4, 4), 1))
        if poison is not None:
            averages.append(ops.Average(draw(1), torch.full((1,), poison, device=DEVICE), 0.25))
        return *module.move_averages(averages), *(buffer for buffer, _, _ in averages)

    for mine, theirs in zip(moved(runnable.coefficients), moved(plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=2e-3 if mine.dtype == torch.half else 1e-6)


@pytest.mark.parametrize(
    "averages",
    [
        [(torch.zeros(1), torch.ones(1), torch.tensor(0.5))],
        [(torch.zeros(1), torch.ones(1), 0.5) for _ in range(5)],
        [(torch.zeros(2, 2)[:, 0], torch.ones(2), 0.5)],
        [(torch.zeros(2**16 + 1), torch.ones(2**16 + 1), 0.5)],
        [(torch.zeros(1, dtype=torch.float64), torch.ones(1), 0.5)],
    ],
    ids=["a momentum on the device", "many", "strided", "large", "float64"],
)
def test_averages_that_the_kernel_does_not_take_are_left_to_plain_pytorch(runnable, monkeypatch, averages):
    monkeypatch.setattr(runnable.coefficients, "_average_kernel", None)
    assert all(runnable.passes.move_averages([ops.Average(*average) for average in averages]))
    assert all((buffer == 0.5).all() for buffer, _, _ in averages)


def test_buffers_that_a_backward_still_needs_are_missed_by_it(use):
    use("triton")
    layer, x = CENorm(16).to(DEVICE), torch.randn(2, 16, 3, 3, device=DEVICE)
    layer.norm.eval()
    y = layer(x)
    layer.norm.train()
    layer(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_trains_the_same(use, dtype, frozen):
    def trained(backend):
        use(backend)
        torch.manual_seed(0)
        layer = CENorm(32).to(DEVICE)
        nn.init.normal_(layer.norm.weight)
        layer.norm.train(not frozen)
        x = torch.randn(3, 32, 5, 7, device=DEVICE).to(dtype).requires_grad_()
        y = layer(x, rectifier=ops.RELU)
        y.square().sum().backward()
        return y, x.grad, *(p.grad for p in layer.parameters()), *layer.buffers(), torch.tensor(layer.finite is None)

    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for mine, theirs in zip(trained("triton"), trained("plain"), strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine.double() - theirs.double()).abs().max() <= tolerance * theirs.double().abs().max()


@pytest.mark.parametrize("ratio", [10, 1e3, 1e4])
def test_samples_that_are_nearly_flat_but_far_from_each_other_cost_no_precision(use, ratio):
    def trained(backend, dtype):
        use(backend)
        torch.manual_seed(0)
        layer = CENorm(32).to(DEVICE, dtype)
        x = (torch.randn(8, 32, 7, 7) + ratio * torch.randn(8, 32, 1, 1)).to(DEVICE, dtype).requires_grad_()
        y = layer(x)
        return y, *torch.autograd.grad(y, [x, *layer.parameters()], torch.randn(x.shape).to(DEVICE, dtype))

    for mine, exact in zip(trained("triton", torch.float32), trained("plain", torch.float64), strict=True):
        assert (mine - exact).abs().max() <= 2e-5 * exact.abs().max()


@pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing compiles in this process")
@pytest.mark.parametrize("name", [*KERNELS, "_average_kernel"])
@pytest.mark.parametrize("all_given", [True, False])
def test_the_kernels_compile_for_a_gpu(monkeypatch, tmp_path, name, all_given):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(load("triton_coefficients"), name)
    numbers = dict(N="i32", C="i32", **{f"size{k}": "i32" for k in range(4)})
    numbers |= dict.fromkeys(("norm_eps", "eps", "bessel", "min_variance"), "fp32")
    numbers |= {f"momentum{k}": "fp32" for k in range(4)} | dict(finite_out="*i1")
    absent = () if all_given else ("norm_weight", "norm_bias", "second", "spread_sums", "buffer3", "value3")
    constants = dict(T=3, G=16, ROWS=16, BLOCK=32, size2=1) | dict.fromkeys(absent)  # of one value: as when launched
    signature, known = {}, {}
    for place, parameter in enumerate(kernel.params):
        if parameter.name in constants:
            signature[parameter.name], known[place,] = "constexpr", constants[parameter.name]
        else:
            signature[parameter.name] = numbers.get(parameter.name, "*fp32")
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    source = triton.compiler.ASTSource(kernel, signature, known)
    options = dict(num_warps=4, enable_fp_fusion=False)
    assert ".entry" in triton.compile(source, target=target, options=options).asm["ptx"]
