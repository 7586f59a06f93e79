"""What a backend is, as the table of them holds it: each computes the paper's equations, and one of them is chosen."""
import copy
import itertools
import logging
import os
import random
import subprocess
import sys
from collections import Counter
from types import ModuleType

import pytest
import torch
from literal_layer import literal_layer

from ce_mm import ops
from ce_mm.layers import CENorm
from ce_mm.ops import backends
from ce_mm.ops.backends import BACKENDS, Backend, add_backend, choose, plain

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)

CHOICES = dict(
    layout=[torch.contiguous_format, torch.channels_last],
    group_size=[1, 2, 4, 6, 16, 32],
    norm=["BN", "GN", "IN", "LN", "SN"],
    branches=[("bd", "ir"), ("bd",), ("ir",)],
    rectifier=[None, ops.RELU, 0.5],
    has_residual=[False, True],
    mode=["training", "inference", "inference without gradients"],
    shape=[(3, 5, 7), (2, 4, 4), (1, 1, 3)],
)
#: The largest error of outputs and of gradients, as a share of the largest value.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-6, torch.float16: 2**-9, torch.bfloat16: 2**-6}


def pairwise(choices, seed=0):
    """Cases, each with one choice of every kind, so that any two choices of different kinds meet in one of them."""
    rng, names = random.Random(seed), list(choices)

    def pairs(case):
        return set(itertools.combinations(((name, repr(case[name])) for name in names), 2))

    cases, met = [], set()
    kinds = itertools.combinations(choices.values(), 2)
    wanted = sum(len(one) * len(other) for one, other in kinds)
    while len(met) < wanted:
        drawn = [{name: rng.choice(values) for name, values in choices.items()} for _ in range(100)]
        best = max(drawn, key=lambda case: len(pairs(case) - met))
        cases += [best] if pairs(best) - met else []
        met |= pairs(best)
    return cases


# float64 by itself, as not every backend reaches it.
CASES = pairwise(dict(dtype=[torch.float32, torch.float16, torch.bfloat16]) | CHOICES)
CASES += pairwise(dict(dtype=[torch.float64]) | CHOICES)


def name_of(case):
    return "-".join(str(value).removeprefix("torch.") for value in case.values())


def device_of(name):
    """One that the backend reaches on this machine."""
    devices = [CPU, *([GPU] if torch.cuda.is_available() else [])]
    return next(device for device in reversed(devices) if BACKENDS[name].reaches(device, torch.float32, 16))


def layer_of(case):
    """Its CENorm in float64, with all parameters and buffers away from their starting values."""
    torch.manual_seed(0)
    channels = 18 if case["group_size"] == 6 else 32
    norm = dict(GN=dict(num_groups=2), IN=dict(affine=True)).get(case["norm"], {})
    ce = CENorm(channels, dict(type=case["norm"], **norm), case["group_size"], branches=case["branches"]).double()
    with torch.no_grad():
        for value in itertools.chain(ce.parameters(), ce.buffers()):
            if value.is_floating_point():
                value.add_(0.2 * torch.rand_like(value))
    return ce.train(case["mode"] == "training")


def rectified(y, rectifier):
    return y if rectifier is None else y.clamp(0, rectifier)


def far_from_kinks(y, rectifier):
    """Where rounding cannot take y to the other side of a kink, beyond which there is another gradient."""
    kinks = [] if rectifier is None else [kink for kink in (0, rectifier) if kink != ops.RELU]
    return torch.stack([torch.ones_like(y, dtype=torch.bool), *((y - kink).abs() > 0.03 for kink in kinks)]).all(0)


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_computes_what_the_paper_says(use, name, case):
    use(name)
    device, dtype, rectifier = device_of(name), case["dtype"], case["rectifier"]
    exact = layer_of(case).to(device)
    ce = copy.deepcopy(exact).to(ops.compute_dtype(dtype))
    n, h, w = case["shape"]
    shape = n, exact.num_features, h, w
    x, residual, dy = (
        torch.randn(shape).to(device, dtype).contiguous(memory_format=case["layout"]) for _ in range(3)
    )  # fmt: skip
    leaves = [x, *([residual] if case["has_residual"] else [])]
    of_exact = [leaf.double().requires_grad_() for leaf in leaves]
    before, buffers = literal_layer(exact, of_exact[0])
    before = before + of_exact[1] if case["has_residual"] else before
    dy = dy * far_from_kinks(before, rectifier)

    backward = case["mode"] != "inference without gradients"
    leaves = [leaf.requires_grad_(backward) for leaf in leaves]
    with torch.set_grad_enabled(backward):
        y = ce(leaves[0], leaves[1] if case["has_residual"] else None, rectifier, overwrite=not backward)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=case["layout"])
    assert (y.double() - rectified(before, rectifier)).abs().max() <= TOLERANCE[dtype] * before.abs().max()
    mine, theirs = [*ce.buffers()], [*buffers.values()]
    if backward:
        mine += torch.autograd.grad(y, [*leaves, *ce.parameters()], dy)
        theirs += torch.autograd.grad(rectified(before, rectifier), [*of_exact, *exact.parameters()], dy.double())
    for one, other in zip(mine, theirs, strict=True):
        assert (one.double() - other).abs().max() <= TOLERANCE[dtype] * other.abs().max()


@pytest.mark.parametrize("name", BACKENDS)
def test_within_its_reach_a_backend_is_the_one_that_runs(use, name):
    use(name)
    assert choose(device_of(name), torch.float32, 16).__name__ == BACKENDS[name].module


@pytest.mark.parametrize("name", BACKENDS)
def test_what_has_no_elements_or_lies_out_of_reach_is_left_to_plain(use, name):
    use(name)
    device = device_of(name)
    assert choose(device, torch.float32, 16, empty=True) is plain
    assert choose(torch.device("meta"), torch.float32, 16) is plain
    for shape in ((0, 8, 3, 3), (2, 8, 0, 3)):
        x = torch.empty(shape, device=device, requires_grad=True)
        moments = ops.moments(x, 4)
        vectors = torch.zeros(shape[0], 8, device=device)
        y = ops.group_affine(x, moments.shift, moments.second, vectors, vectors, x, ops.RELU, moments.link)
        y.sum().backward()
        assert y.shape == x.grad.shape == shape
        assert moments.instance.shape == (2, shape[0], 8)
        assert moments.second.shape == (1, 2, 4, 4)
        assert not any(value.any() for value in moments[:3])


@pytest.fixture
def counting(monkeypatch):
    """A backend of a user's for maps of float32 in groups of at most 8, and how often each of its passes was called."""
    calls = Counter()

    def counted(name):
        def function(*args, **kwargs):
            calls[name] += 1
            return getattr(plain, name)(*args, **kwargs)

        return function

    monkeypatch.delenv("CE_MM_BACKEND", raising=False)
    module = ModuleType("a_user_s_backend")
    module.ASKS, module.OVERWRITES = plain.ASKS, plain.OVERWRITES
    for name in ("moments", "group_affine", "output_sums", "input_gradient", "move_averages"):
        setattr(module, name, counted(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    reaches = lambda device, dtype, group_size: dtype == torch.float32 and group_size <= 8  # noqa: E731
    monkeypatch.setattr(backends, "BACKENDS", dict(BACKENDS))
    add_backend("counting", Backend(module.__name__, reaches))
    yield calls
    choose.cache_clear()


def train_a_step(group_size=4, dtype=torch.float32):
    torch.manual_seed(0)
    ce, x = CENorm(16, group_size=group_size), torch.randn(2, 16, 3, 5).to(dtype).requires_grad_()
    y = ce(x, rectifier=ops.RELU)
    y.square().sum().backward()
    return y, x.grad, *(p.grad for p in ce.parameters()), *ce.buffers()


def test_a_backend_that_a_user_adds_runs_what_it_reaches(counting, monkeypatch):
    mine = train_a_step()
    passes = dict(moments=1, group_affine=1, output_sums=1, input_gradient=1)
    assert counting == passes | dict(move_averages=1)
    monkeypatch.setenv("CE_MM_BACKEND", "plain")
    choose.cache_clear()
    assert all(map(torch.equal, mine, train_a_step()))


@pytest.mark.parametrize("beyond", [dict(group_size=16), dict(dtype=torch.bfloat16)], ids=str)
def test_a_backend_that_a_user_adds_is_not_asked_for_what_it_does_not_reach(counting, beyond):
    train_a_step(**beyond)
    assert not any(counting[name] for name in ("moments", "group_affine", "output_sums", "input_gradient"))


def test_a_backend_need_not_say_what_pays_on_its_device(counting, monkeypatch):
    expected = train_a_step()
    for name in ("ASKS", "OVERWRITES"):
        monkeypatch.delattr(sys.modules["a_user_s_backend"], name)
    torch.testing.assert_close(train_a_step(), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        CENorm(16, group_size=4)(torch.randn(2, 16, 3, 5), overwrite=True)
    assert counting["group_affine"] == 3


def test_a_user_may_name_or_leave_out_an_added_backend(counting, monkeypatch):
    for asked, steps in (("counting", 1), ("-triton", 2), ("-counting", 2), ("plain", 2)):
        monkeypatch.setenv("CE_MM_BACKEND", asked)
        choose.cache_clear()
        train_a_step()
        assert counting["moments"] == steps


@pytest.fixture
def a_gpu(monkeypatch):
    """A function: a machine whose GPU has this compute capability, in a process that has chosen nothing yet."""

    def of(capability):
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    monkeypatch.delenv("CE_MM_BACKEND", raising=False)
    for cached in (choose, backends._has_triton):
        cached.cache_clear()
    yield of
    for cached in (choose, backends._has_triton):
        cached.cache_clear()


def test_a_gpu_s_maps_are_triton_s_but_not_those_of_float64_or_of_wide_groups(a_gpu):
    a_gpu((9, 0))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert choose(GPU, dtype, 64).__name__ == "ce_mm.ops.backends.triton_passes"
    assert choose(GPU, torch.float64, 16) is plain
    assert choose(GPU, torch.float32, 128) is plain
    assert choose(CPU, torch.float32, 16).__name__ != "ce_mm.ops.backends.triton_passes"


def test_a_gpu_before_ampere_has_plain_calls(a_gpu):
    a_gpu((7, 5))
    assert choose(GPU, torch.float16, 16) is plain


def test_without_triton_one_line_in_the_log_says_what_to_install(a_gpu, monkeypatch, caplog):
    a_gpu((9, 0))
    monkeypatch.setitem(sys.modules, "triton", None)
    with caplog.at_level(logging.WARNING):
        assert all(choose(GPU, dtype, 16) is plain for dtype in TOLERANCE)
    assert [record.name for record in caplog.records] == ["ce_mm.ops.backends"]
    assert "pip install triton" in caplog.text


@pytest.mark.parametrize(
    ("asked", "runs"), [("", "triton_passes"), ("triton", "triton_passes"), ("-triton", "plain"), ("plain", "plain")]
)
def test_the_environment_names_the_one_backend_or_one_to_leave_out(a_gpu, monkeypatch, asked, runs):
    a_gpu((9, 0))
    monkeypatch.setenv("CE_MM_BACKEND", asked)
    assert choose(GPU, torch.float32, 16).__name__ == f"ce_mm.ops.backends.{runs}"


@pytest.mark.parametrize("asked", ["cuda", "Triton", "-", "-plain", "-cuda", "--triton", "triton,plain"])
def test_a_name_that_is_no_backend_s_is_answered_with_those_there_are(a_gpu, monkeypatch, asked):
    monkeypatch.setenv("CE_MM_BACKEND", asked)
    with pytest.raises(ValueError, match=rf"CE_MM_BACKEND must name a backend \(plain, numba, triton\).*got '{asked}'"):
        choose(CPU, torch.float32, 16)


INTERPRETED = """
import os
import torch
from ce_mm import ops
from ce_mm.layers import CENorm

def step():
    torch.manual_seed(0)
    ce, x = CENorm(16), torch.randn(2, 16, 3, 5, requires_grad=True)
    ce(x, rectifier=ops.RELU).square().sum().backward()
    return x.grad, *(p.grad for p in ce.parameters()), *ce.buffers()

def names():
    return ops.choose(torch.device("cpu"), torch.float32, 16).__name__

assert names() == "ce_mm.ops.backends.triton_passes", names()
interpreted = step()
os.environ["CE_MM_BACKEND"] = "plain"
ops.choose.cache_clear()
assert names() == "ce_mm.ops.backends.plain", names()
for mine, theirs in zip(interpreted, step(), strict=True):
    assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()
"""


def test_a_process_may_run_triton_s_kernels_interpreted_on_a_cpu():
    pytest.importorskip("triton")
    environment = os.environ | dict(CE_MM_BACKEND="triton", TRITON_INTERPRET="1")
    subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, check=True)


@pytest.mark.parametrize("name", ["", "plain", "-triton"])
def test_a_name_that_could_not_be_asked_for_is_refused(name):
    with pytest.raises(ValueError, match="a backend's name must be one of its own, without a minus, got"):
        backends.add_backend(name, backends.BACKENDS["triton"])


def test_a_backend_in_the_place_of_one_of_its_name_is_asked_first(monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", dict(backends.BACKENDS, other=backends.BACKENDS["plain"]))
    backends.add_backend("triton", backends.BACKENDS["triton"])
    assert list(backends.BACKENDS) == ["plain", "numba", "other", "triton"]
