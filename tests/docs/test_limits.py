"""The page on limits: every row with an error gives it, and the ways round that it names work."""
import io
import re
import subprocess
import sys
import warnings

import pytest
import torch
from mmengine.config import Config
from pages import ROOT, text_of
from torch import nn
from torch.autograd import forward_ad

from ce_mm.__main__ import main
from ce_mm.layers import BatchDecorrelation, CENorm, equalize, fold
from ce_mm.ops import RELU, backends, choose, reference

#: The first words of a row's first cell -> its error.
ROWS = dict(re.findall(r"^\| ([^|]+) \| `(\w+: [^`]+)` \|", text_of("docs/limits.md"), re.MULTILINE))


def map_(*shape, grad=False):
    return torch.randn(*shape or (4, 32, 8, 8), requires_grad=grad)


class Mean(nn.Module):
    """Of all there is."""

    def forward(self, x):
        return x.mean()


def network():
    """In eval mode, after a batch."""
    model = nn.Sequential(nn.Conv2d(3, 32, 3), CENorm(32), nn.ReLU())
    model(map_(2, 3, 8, 8))
    return model.eval()


def double_backward(layer, x=None):
    x = map_(grad=True) if x is None else x
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    return x.grad


def forward_mode(layer):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(map_(), map_()))).tangent


def traced(model, x):
    torch.jit.save(torch.jit.trace(model, x), io.BytesIO())


def onnx(model, x):
    torch.onnx.export(model, (x,), io.BytesIO(), dynamo=True, verbose=False)


def loaded_elsewhere(model, path, imports="torch"):
    """Loads an exported program in a process of its own."""
    torch.export.save(torch.export.export(model, (map_(2, 3, 8, 8),)), path)
    code = f"import torch, {imports}; torch.export.load({str(path)!r}).module()(torch.randn(2, 3, 8, 8))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr.rpartition("RuntimeError: ")[2].strip())


def quantized(model):
    dynamic = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return dynamic(map_(2, 3, 8, 8))


def with_branch():
    class B(BatchDecorrelation):
        def forward(self, x):
            return x

    layer = CENorm(32)
    layer.bd = B(32, 16, 3, False, 1e-5)
    return layer(map_())


def of_a_base(tmp_path):
    (tmp_path / "config.py").write_text('_base_ = "ce_mm::shapes/ce-resnet18_shapes.py"\n')
    return Config.fromfile(tmp_path / "config.py")


def by_name():
    from mmpretrain import get_model

    return get_model("ce-resnet50_8xb32_in1k")


def border_align():
    from mmcv import _ext

    if getattr(_ext, "__file__", None):
        pytest.skip("this mmcv has compiled operators")
    return _ext.border_align_forward()


CASES = {
    "double backward: a gradient penalty": lambda tmp: double_backward(CENorm(32)),
    "`torch.func.grad`": lambda tmp: torch.func.grad(nn.Sequential(CENorm(32), Mean()))(map_()),
    "`torch.func.vmap`": lambda tmp: torch.func.vmap(CENorm(32))(map_(2, 4, 32, 8, 8)),
    "forward-mode AD": lambda tmp: forward_mode(CENorm(32)),
    "`torch.jit.script`": lambda tmp: torch.jit.script(CENorm(32)),
    "`torch.jit.trace`": lambda tmp: traced(network(), map_(2, 3, 8, 8)),
    "`torch.onnx.export`": lambda tmp: onnx(network(), map_(2, 3, 8, 8)),
    "an exported program": lambda tmp: loaded_elsewhere(network(), tmp / "a.pt2"),
    "double backward under": lambda tmp: double_backward(torch.compile(CENorm(32), backend="aot_eager")),
    "`torch.nn.utils.fusion.fuse_conv_bn_eval`": lambda tmp: nn.utils.fusion.fuse_conv_bn_eval(*network()[:2]),
    "`torch.ao.quantization.quantize_dynamic`": lambda tmp: quantized(network()),
    "tokens (N, L, C)": lambda tmp: CENorm(32)(map_(2, 49, 32)),
    "maps of integers": lambda tmp: CENorm(32)(map_().int()),
    "BatchNorm1d and 3d": lambda tmp: CENorm(32, norm=dict(type="BN1d")),
    "a lazy norm": lambda tmp: equalize(nn.Sequential(nn.LazyBatchNorm2d()), "*"),
    "a branch with a `forward`": lambda tmp: with_branch(),
    "`_base_ = ": of_a_base,
    "`mmpretrain.get_model`": lambda tmp: by_name(),
    "an operator of mmcv's": lambda tmp: border_align(),
}


@pytest.mark.parametrize("what", CASES)
def test_it_fails_as_the_page_says(what, tmp_path):
    ((row, error),) = ((row, error) for row, error in ROWS.items() if row.startswith(what))
    kind, _, text = error.partition(": ")
    with warnings.catch_warnings(action="ignore"), pytest.raises(Exception) as raised:
        CASES[what](tmp_path)
    kinds = {base.__name__ for base in type(raised.value).__mro__}
    assert kind in kinds
    assert text in str(raised.value)


def test_every_row_with_an_error_is_tried():
    tried = [row for row in ROWS if row.startswith((*CASES, "`--amp`"))]
    assert sorted(tried) == sorted(ROWS)


def test_amp_without_a_gpu_is_one_line(tmp_path, monkeypatch, capfd):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    from ce_mm.datasets.shapes import make_shapes

    make_shapes(tmp_path / "data/shapes", num_train=1, num_val=1, num_crops=6)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert main(["train", "ce_mm::shapes/ce-resnet18_shapes.py", "--amp"]) == 2
    ((_, error),) = ((row, error) for row, error in ROWS.items() if row.startswith("`--amp`"))
    assert error in capfd.readouterr().err
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network()(map_(2, 3, 8, 8)).isfinite().all()


def test_folded_all_of_it_works(tmp_path):
    layer = CENorm(32)
    layer(map_())
    folded, x, model = fold(layer), map_(), fold(network())
    assert double_backward(folded).isfinite().all()
    assert torch.func.grad(lambda x: folded(x).mean())(x).shape == x.shape
    torch.testing.assert_close(torch.func.vmap(lambda one: folded(one[None])[0])(x), folded(x), rtol=1e-4, atol=1e-5)
    assert forward_mode(folded).isfinite().all()
    torch.testing.assert_close(torch.jit.script(folded)(x), folded(x))
    traced(model, map_(2, 3, 8, 8))
    onnx(model, map_(2, 3, 8, 8))
    loaded_elsewhere(model, tmp_path / "a.pt2")
    assert quantized(model).isfinite().all()


def test_an_exported_program_loads_where_the_operators_are(tmp_path):
    loaded_elsewhere(network(), tmp_path / "a.pt2", imports="ce_mm.ops")


def test_the_literal_equations_can_be_differentiated_twice():
    layer = CENorm(32)
    ir = layer.ir
    gate = reference.Gate(ir.fc1.weight, ir.ln.weight, ir.ln.bias, ir.fc2.weight)
    gradient = double_backward(lambda x: reference.equilibrium(layer.norm(x), gate, layer.mix)[0])
    assert gradient.isfinite().all() and gradient.any()


def test_a_functional_call_has_gradients():
    layer = CENorm(32)
    parameters = {name: value.detach().requires_grad_() for name, value in layer.named_parameters()}
    y = torch.func.functional_call(layer, parameters, (map_(),))
    gradients = torch.autograd.grad(y.square().mean(), list(parameters.values()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_jacobian_is_had_one_row_at_a_time():
    layer, jacobian = CENorm(32), torch.autograd.functional.jacobian
    assert jacobian(lambda x: layer(x).sum((0, 2, 3)), map_(2, 32, 2, 2)).shape == (32, 2, 32, 2, 2)
    with pytest.raises(RuntimeError):
        jacobian(lambda x: layer(x).sum((0, 2, 3)), map_(2, 32, 2, 2), vectorize=True)


def test_a_hessian_is_zero_without_an_error_unless_it_is_strict():
    layer, hessian = CENorm(32), torch.autograd.functional.hessian
    assert not hessian(lambda x: layer(x).square().sum(), map_(2, 32, 2, 2)).any()
    with pytest.raises(RuntimeError):
        hessian(lambda x: layer(x).square().sum(), map_(2, 32, 2, 2), strict=True)


def test_a_penalty_behind_which_all_is_linear_has_no_gradient_on_compiled_passes():
    if choose(torch.device("cpu"), torch.float32, 16) is backends.plain:
        pytest.skip("nothing is compiled here")
    x = map_(grad=True)
    (gradient,) = torch.autograd.grad(CENorm(32)(x).sum(), x, create_graph=True)
    assert not gradient.requires_grad


def test_a_rectified_result_may_not_be_changed_before_the_backward():
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        CENorm(32)(map_(grad=True), rectifier=RELU).mul_(2).sum().backward()
    CENorm(32)(map_(grad=True)).mul_(2).sum().backward()


def test_hooks_on_parts_are_not_called_and_one_on_the_layer_is():
    layer, called = CENorm(32), []
    for name in ("norm", "bd", "ir", "ir.fc1", ""):
        layer.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    layer(map_())
    assert called == [""]


def test_a_checkpointed_layer_s_averages_move_twice_as_batch_norm_s_do():
    for layer in (nn.BatchNorm2d(32), CENorm(32)):
        norm = getattr(layer, "norm", layer)
        torch.utils.checkpoint.checkpoint(layer, map_(grad=True), use_reentrant=False).sum().backward()
        assert norm.num_batches_tracked == 2


def test_a_folded_state_does_not_load():
    with pytest.raises(RuntimeError, match="Missing key"):
        network().load_state_dict(fold(network()).state_dict())
