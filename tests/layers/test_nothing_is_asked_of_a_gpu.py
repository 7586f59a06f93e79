"""A step on a GPU, in training and inference, asks nothing of the device, and so can be captured in a CUDA graph."""
import sys
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from pretended_gpu import NothingIsAsked, Waits, pretended_gpu, unwatched
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from triton_modules import load

from ce_mm import ops
from ce_mm.layers import CENorm, SwitchableNorm
from ce_mm.ops.backends import choose

LAYERS = {
    "BN": {},
    "BN, wide groups": dict(group_size=32),
    "BN, BD": dict(branches=("bd",)),
    "BN, IR": dict(branches=("ir",)),
    "BN, neither": dict(branches=()),
    "BN, max pool": dict(max_pool=True),
    "cumulative BN": dict(norm=dict(type="BN", momentum=None)),
    "GN": dict(norm=dict(type="GN", num_groups=4)),
    "IN": dict(norm=dict(type="IN", affine=True)),
    "SN": dict(norm=dict(type="SN")),
}


@pytest.fixture(params=["plain", "triton"])
def backend(request, monkeypatch):
    """The passes of one backend; Triton's kernels themselves do nothing here."""
    monkeypatch.setenv("CE_MM_BACKEND", request.param)
    launched = []
    if request.param == "triton":
        pytest.importorskip("triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # it reaches maps of a CPU too
        for name in ("triton_tiles", "triton_coefficients", "triton_passes"):
            module = load(name)
            monkeypatch.setitem(sys.modules, f"ce_mm.ops.backends.{name}", module)
            for kernel in [each for each in vars(module) if each.endswith("_kernel")]:
                launch = lambda *_, kernel=kernel, **__: launched.append(kernel)  # noqa: E731
                monkeypatch.setattr(module, kernel, defaultdict(lambda launch=launch: launch))
    choose.cache_clear()
    yield SimpleNamespace(name=request.param, launched=launched)
    choose.cache_clear()


def forward(layer, dtype=torch.float32, rectifier=ops.RELU):
    """Of a training step."""
    x = torch.randn(4, 32, 6, 6, dtype=dtype, requires_grad=True)
    residual = torch.randn_like(x)
    with NothingIsAsked():
        assert layer(x, residual, rectifier).is_cuda


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_by_a_forward_pass_in_training(backend, name, dtype):
    with pretended_gpu():
        forward(CENorm(32, **LAYERS[name]), dtype)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("learns", [True, False])
def test_by_a_backward_pass(backend, monkeypatch, name, learns):
    # On a CPU, where plain asks for the shift of a float32 map alone.
    module = choose(torch.device("cpu"), torch.bfloat16, 16)
    monkeypatch.setattr(module, "ASKS", frozenset())
    layer, x = CENorm(32, **LAYERS[name]).train(learns), torch.randn(4, 32, 6, 6).bfloat16().requires_grad_()
    y = layer(x, x, ops.RELU)
    with unwatched(), NothingIsAsked("cpu"):
        y.backward(torch.randn_like(y))
    assert x.grad is not None


@pytest.mark.parametrize("name", LAYERS)
def test_by_inference(backend, name):
    with pretended_gpu():
        layer = CENorm(32, **LAYERS[name]).eval()
        with NothingIsAsked(), torch.no_grad():
            assert layer(torch.randn(4, 32, 6, 6)).is_cuda


@pytest.mark.parametrize("rectifier", [None, ops.RELU6])
def test_by_another_rectifier(backend, rectifier):
    with pretended_gpu():
        forward(CENorm(32), rectifier=rectifier)


def test_by_a_switchable_norm_alone(backend):
    with pretended_gpu():
        layer, x = SwitchableNorm(32), torch.randn(4, 32, 6, 6, requires_grad=True)
        with NothingIsAsked():
            for _ in range(2):
                layer(x)


def test_which_way_the_usual_layer_goes(backend):
    with pretended_gpu():
        forward(CENorm(32))
    kernels = ["_sums_kernel", "_base_norm_kernel", "_combine_kernel", "_average_kernel", "_affine_kernel"]
    assert backend.launched in ([], kernels) and bool(backend.launched) == (backend.name == "triton")


def test_a_frozen_layer_in_training_asks_once_and_never_where_a_graph_is_captured(backend):
    with pretended_gpu():
        layer = CENorm(32)
        layer.norm.eval()
        with pytest.raises(Waits, match="equal"):
            forward(layer)
        forward(layer)
    with pretended_gpu(captures=True):
        layer = CENorm(32)
        layer.norm.eval()
        forward(layer)
        assert not layer._averages_seen


def test_a_captured_step_reads_no_flag_of_a_step_before_it(backend):
    for layer_of in (CENorm, SwitchableNorm):
        for captures in (False, True):
            with pretended_gpu(captures=captures):
                layer, x = layer_of(32), torch.randn(4, 32, 6, 6)
                layer.finite = torch.ones((), dtype=torch.bool, device="meta")  # which cannot be joined with a GPU's
                if captures:
                    layer(x)
                    assert layer.finite.is_cuda
                else:
                    with pytest.raises(Exception, match=r"meta|device"):
                        layer(x)


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: bool(x.any()), lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(),
        lambda x: torch.equal(x, x), lambda x: x.cpu(), lambda x: x.tolist(), lambda x: x + x.new_ones(3, device="cpu"),
        lambda x: x.clone().copy_(torch.ones(3, device="cpu")), lambda x: torch.ones(3, device="cpu").to(x.device),
        lambda x: torch.tensor(1.0, device=x.device),
    ],
)  # fmt: skip
def test_who_asks_would_be_caught(ask):
    with pretended_gpu():
        x = torch.randn(3)
        with NothingIsAsked(), pytest.raises((Waits, DynamicOutputShapeException)):
            ask(x)
