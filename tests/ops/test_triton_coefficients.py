"""The coefficients by Triton's kernels are those of plain PyTorch: on a GPU where there is one, else interpreted."""
import sys
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from triton_modules import load

from ce_mm import ops
from ce_mm.layers import CENorm
from ce_mm.ops import plain
from ce_mm.ops.channel_equilibrium import MIN_VARIANCE

triton = pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = ["_base_norm_kernel", "_base_norm_backward_kernel", "_combine_kernel", "_combine_backward_kernel"]


@pytest.fixture
def choose(runnable, monkeypatch):
    """A function that has everything computed by Triton, or nothing."""

    def by_triton(yes):
        for user in ("moments", "group_affine", "joint"):
            module = sys.modules[f"ce_mm.ops.{user}"]
            monkeypatch.setattr(module, "kernels", lambda x: runnable.kernels if yes and not x.is_meta else plain)
        for user in ("equilibrium", "moving_average"):
            module = sys.modules[f"ce_mm.ops.{user}"]
            monkeypatch.setattr(module, "coefficient_kernels", lambda *_: runnable.coefficients if yes else None)

    for name in ("_sums_kernel", "_affine_kernel", "_input_gradient_kernel"):
        kernel = getattr(runnable.kernels, name)
        monkeypatch.setattr(kernel, "configs", kernel.configs[:1])
    return by_triton


def problem(n=3, c=32, g=16, positions=9, affine=True, tiny=False, dtype=torch.float64):
    """The tensors of a layer, without those of the norm if asked; ``tiny``: of a map of next to no variance."""
    generator = torch.Generator().manual_seed(n * c + g)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x = (1e-4 * draw(n, c, positions, 1) if tiny else 1.5 * draw(n, c, positions, 1) + draw(c, 1, 1)).to(DEVICE)
    instance, second = plain.moments(x, x.new_zeros(c), g, True, False)
    hidden = max(c // 4, 1)
    norm = (1 + 0.2 * draw(c), draw(c)) if affine else (None, None)
    gate = draw(hidden, c) / c**0.5, 1 + 0.2 * draw(hidden), 0.3 * draw(hidden), draw(c, hidden) / hidden**0.5
    tensors = instance, second, *norm, *gate, draw(1)
    given = [None if t is None else t.detach().to(DEVICE, dtype).requires_grad_() for t in tensors]
    results = draw(1, c // g, g, g), draw(n, c), draw(n, c)
    return given, [result.to(DEVICE, dtype) for result in results]


def results_and_gradients(given, douts, iterations=3, bessel=1.125, norm_eps=1e-5, statistics=None):
    """Coefficients, the statistics used, and the gradients of all that is given, but of E not where it is not used."""
    instance, second, gamma, beta, *gate, mix = given
    coefficients, used = ops.equilibrium(
        instance, statistics or second, gamma, beta, ops.Gate(*gate, 1e-5), mix, norm_eps=norm_eps, eps=1e-5,
        iterations=iterations, bessel=bessel,
    )  # fmt: skip
    inputs = [t for t in given if t is not None and not (t is second and statistics)]
    return *coefficients, *used, *torch.autograd.grad(coefficients, inputs, douts)


def assert_close(mine, exact):
    for one, other in zip(mine, exact, strict=True):
        assert (one.shape, one.dtype) == (other.shape, torch.float32)
        if other.numel():
            assert (one.double() - other).abs().max() <= 2e-5 * other.abs().max().clamp_min(1e-30)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "shape",
    [dict(n=3, c=32, g=16), dict(n=40, c=64, g=16), dict(n=2, c=58, g=2), dict(n=2, c=18, g=6), dict(n=1, c=24, g=8)],
    ids=str,
)
def test_the_coefficients_and_their_gradients_agree_with_float64(choose, shape, iterations):
    choose(False)
    exact = results_and_gradients(*problem(**shape), iterations)
    choose(True)
    assert_close(results_and_gradients(*problem(**shape, dtype=torch.float32), iterations), exact)


def test_a_norm_without_parameters_agrees(choose):
    choose(False)
    exact = results_and_gradients(*problem(affine=False))
    choose(True)
    assert_close(results_and_gradients(*problem(affine=False, dtype=torch.float32)), exact)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [dict(n=3, c=32, g=16), dict(n=40, c=58, g=2), dict(n=0, c=16, g=16)], ids=str)
def test_with_statistics_given_the_coefficients_and_gradients_agree(choose, shape, affine):
    c, g = shape["c"], shape["g"]
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(*shape, generator=generator).double().to(DEVICE)  # noqa: E731
    statistics = ops.Statistics(draw(c), draw(c) + 0.1, draw(c // g, g, g), draw(1) + 1)
    choose(False)
    exact = results_and_gradients(*problem(**shape, affine=affine), statistics=statistics)
    choose(True)
    statistics = ops.Statistics(*(value.float() for value in statistics))
    mine = results_and_gradients(*problem(**shape, affine=affine, dtype=torch.float32), statistics=statistics)
    assert_close(mine, exact)


def test_tensors_need_not_be_dense(choose):
    given, douts = problem(dtype=torch.float32)
    strided = [torch.stack([t.detach()] * 2, -1)[..., 0].requires_grad_() for t in given]
    statistics = ops.Statistics(*(torch.rand(2, *shape).T.to(DEVICE)[..., 0] for shape in ((32,), (32,))),
                                torch.rand(2, 16, 16).mT.to(DEVICE), torch.rand(1).to(DEVICE))  # fmt: skip
    choose(True)
    for source in (None, statistics):
        expected = results_and_gradients(given, douts, statistics=source and ops.Statistics(*map(torch.clone, source)))
        mine = results_and_gradients(strided, [torch.stack([d] * 2, -1)[..., 0] for d in douts], statistics=source)
        assert all(map(torch.equal, mine, expected))


@pytest.mark.parametrize("shape", [dict(c=24, g=8), dict(c=18, g=6), dict(c=32, g=16)], ids=str)
def test_without_an_eps_in_the_norm_tiles_that_are_not_full_give_finite_numbers(choose, shape):
    choose(False)
    exact = results_and_gradients(*problem(**shape), norm_eps=0.0)
    choose(True)
    assert_close(results_and_gradients(*problem(**shape, dtype=torch.float32), norm_eps=0.0), exact)


def test_where_the_mean_variance_is_clamped_no_gradient_passes_it(choose):
    given, douts = problem(tiny=True, dtype=torch.float32)
    choose(False)
    expected = results_and_gradients(given, douts, norm_eps=1.0)
    torch.testing.assert_close(expected[6].item(), MIN_VARIANCE**-0.5)
    choose(True)
    assert_close(results_and_gradients(given, douts, norm_eps=1.0)[:8], [r.double() for r in expected[:8]])


def test_the_variance_of_a_single_position_is_exactly_zero(choose, runnable):
    instance, *others = (tensor.detach() for tensor in problem(n=2, c=16, dtype=torch.float32)[0][:4])
    instance = torch.stack([instance[0], torch.zeros_like(instance[0])])
    second, *norm = others
    base = runnable.coefficients.base_norm(instance, second, None, None, *norm, 1e-5, 1e-5, 3, 1.0)
    assert not base.spread.any()
    assert not base.spread_sums.any()


def test_two_runs_give_the_same_bits(choose):
    choose(True)
    one, two = (results_and_gradients(*problem(dtype=torch.float32)) for _ in range(2))
    assert all(map(torch.equal, one, two))


def test_a_value_that_is_not_finite_is_seen_in_the_statistics(choose):
    choose(True)
    given, douts = problem(dtype=torch.float32)
    with torch.no_grad():
        given[0][0, 1, 3] = torch.nan
    found = results_and_gradients(given, douts)
    assert found[3].isnan().nonzero().tolist() == [[3]]
    assert found[6].isnan().all()


@pytest.mark.parametrize("used", range(3))
def test_a_coefficient_that_nobody_uses_has_no_part_in_the_gradients(choose, used):
    def gradients(by_triton, dtype):
        choose(by_triton)
        given, douts = problem(dtype=dtype)
        instance, second, gamma, beta, *gate, mix = given
        coefficients, _ = ops.equilibrium(instance, second, gamma, beta, ops.Gate(*gate, 1e-5), mix, norm_eps=1e-5,
                                          eps=1e-5, iterations=3, bessel=1.0)  # fmt: skip
        return torch.autograd.grad(coefficients[used], (instance, gamma), douts[used])

    assert_close(gradients(True, torch.float32), gradients(False, torch.float64))


def test_a_training_step_takes_few_launches(choose, runnable, monkeypatch):
    launches = Counter()

    class Launches(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            launches["of PyTorch"] += not operator.is_view and "empty" not in operator.name()
            return operator(*args, **kwargs or {})

    monkeypatch.setattr(runnable.coefficients, "_launch", lambda *_, **__: launches.update(["of Triton"]))
    arguments = problem(dtype=torch.float32)
    choose(True)
    with Launches():
        results_and_gradients(*arguments)
    assert launches == {"of Triton": 4, "of PyTorch": 11}
    launches.clear()
    choose(False)
    with Launches():
        results_and_gradients(*arguments)
    assert launches["of PyTorch"] > 120


@pytest.mark.parametrize("change", [dict(g=32), dict(dtype=torch.float64)], ids=str)
def test_what_the_kernels_do_not_take_is_left_to_plain_pytorch(choose, runnable, monkeypatch, change):
    for name in KERNELS:
        monkeypatch.setattr(runnable.coefficients, name, None)
    choose(True)
    assert len(results_and_gradients(*problem(**dict(dtype=torch.float32) | change))) == 16


@pytest.mark.parametrize("poison", [None, torch.nan, torch.inf])
def test_the_averages_move_all_or_none(choose, poison):
    def moved(by_triton):
        choose(by_triton)
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator).to(DEVICE)  # noqa: E731
        averages = [(draw(1500), draw(1500), 0.1), (draw(1500).half(), draw(1500), 0.5)]
        averages.append((draw(90, 4, 4), draw(90, 4, 4), 1))
        if poison is not None:
            averages.append((draw(1), torch.full((1,), poison, device=DEVICE), 0.25))
        return *ops.update_averages(averages), *(buffer for buffer, _, _ in averages)

    for mine, theirs in zip(moved(True), moved(False), strict=True):
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
def test_averages_that_the_kernel_does_not_take_are_left_to_plain_pytorch(choose, runnable, monkeypatch, averages):
    monkeypatch.setattr(runnable.coefficients, "_average_kernel", None)
    choose(True)
    assert all(ops.update_averages(averages))
    assert all((buffer == 0.5).all() for buffer, _, _ in averages)


def test_buffers_that_a_backward_still_needs_are_missed_by_it(choose):
    choose(True)
    layer, x = CENorm(16).to(DEVICE), torch.randn(2, 16, 3, 3, device=DEVICE)
    layer.norm.eval()
    y = layer(x)
    layer.norm.train()
    layer(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_trains_the_same(choose, dtype, frozen):
    def trained(by_triton):
        choose(by_triton)
        torch.manual_seed(0)
        layer = CENorm(32).to(DEVICE)
        nn.init.normal_(layer.norm.weight)
        layer.norm.train(not frozen)
        x = torch.randn(3, 32, 5, 7, device=DEVICE).to(dtype).requires_grad_()
        y = layer(x, relu=True)
        y.square().sum().backward()
        return y, x.grad, *(p.grad for p in layer.parameters()), *layer.buffers(), torch.tensor(layer.finite is None)

    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for mine, theirs in zip(trained(True), trained(False), strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine.double() - theirs.double()).abs().max() <= tolerance * theirs.double().abs().max()


@pytest.mark.parametrize("ratio", [10, 1e3, 1e4])
def test_samples_that_are_nearly_flat_but_far_from_each_other_cost_no_precision(choose, monkeypatch, ratio):
    monkeypatch.setattr(sys.modules["ce_mm.ops.moments"], "_take_apart", lambda *_: None)  # a CPU's own way

    def trained(by_triton, dtype):
        choose(by_triton)
        torch.manual_seed(0)
        layer = CENorm(32).to(DEVICE, dtype)
        x = (torch.randn(8, 32, 7, 7) + ratio * torch.randn(8, 32, 1, 1)).to(DEVICE, dtype).requires_grad_()
        y = layer(x)
        return y, *torch.autograd.grad(y, [x, *layer.parameters()], torch.randn(x.shape).to(DEVICE, dtype))

    for mine, exact in zip(trained(True, torch.float32), trained(False, torch.float64), strict=True):
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
