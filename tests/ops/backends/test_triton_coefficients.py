"""What Triton's chain of coefficients is made of: few launches, of what its kernels take, for GPUs."""
from collections import Counter, defaultdict

import pytest
import torch
from chain_problem import problem, usual_of
from torch.utils._python_dispatch import TorchDispatchMode
from triton_modules import load

from ce_mm import ops
from ce_mm.ops.backends import plain

triton = pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = ["_base_norm_kernel", "_base_norm_backward_kernel", "_combine_kernel", "_combine_backward_kernel"]


def test_the_variance_of_a_single_position_is_exactly_zero(use, runnable):
    use("triton")
    p = problem(device=DEVICE, n=2, c=16, positions=1, dtype=torch.float32)
    chain = usual_of(p).chain
    instance = torch.stack([p.moments.instance[0], torch.zeros_like(p.moments.instance[0])])
    norm = p.layer.weight.detach(), p.layer.bias.detach()
    base = runnable.coefficients.base_norm(instance, p.moments.second, None, None, *norm, chain)
    assert not base.spread.any()
    assert not base.spread_sums.any()


def test_a_training_step_takes_few_launches(use, runnable, monkeypatch):
    launches = Counter()

    class Launches(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            launches["of PyTorch"] += not operator.is_view and "empty" not in operator.name()
            return operator(*args, **kwargs or {})

    launch = lambda *_, **__: launches.update(["of Triton"])  # noqa: E731
    monkeypatch.setattr(runnable.coefficients, "_launch", launch)
    monkeypatch.setattr(runnable.coefficients, "_average_kernel", defaultdict(lambda: launch))
    use("triton")
    p = problem(device=DEVICE, dtype=torch.float32)
    usual = usual_of(p)
    with Launches():  # who looks on gets the chain in PyTorch's calls, so the kernels' is called by itself
        given = p.moments.shift, *usual[1:4]
        _, _, kept = usual.backend.coefficients(*p.moments[1:3], *given, checks=False)
        usual.backend.coefficients_backward(kept, usual.parameters, usual.chain, *p.douts)
    assert launches == {"of Triton": 5, "of PyTorch": 13}
    launches.clear()
    with Launches():
        assert usual_of(p) is None


@pytest.mark.parametrize("change", [dict(g=32), dict(dtype=torch.float64)], ids=str)
def test_what_the_kernels_do_not_take_is_left_to_plain_pytorch(use, runnable, change):
    use("triton")
    assert usual_of(problem(device=DEVICE, dtype=torch.float32)) is not None
    assert usual_of(problem(device=DEVICE, **dict(dtype=torch.float32) | change)) is None


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


@pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing compiles in this process")
@pytest.mark.parametrize("name", [*KERNELS, "_average_kernel"])
@pytest.mark.parametrize("all_given", [True, False])
def test_the_kernels_compile_for_a_gpu(monkeypatch, tmp_path, name, all_given):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(load("triton_coefficients"), name)
    numbers = dict(N="i32", C="i32", P="i32", **{f"size{k}": "i32" for k in range(4)})
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
