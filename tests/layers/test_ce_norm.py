import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import parametrize, prune
from torchvision.ops import FrozenBatchNorm2d

from ce_mm import ops
from ce_mm.layers import BatchDecorrelation, CENorm, SwitchableNorm, fold
from ce_mm.ops import RELU, RELU6
from ce_mm.ops.reference import Averages, Gate, equilibrium

ALL = ("bd", "ir")


def layer(channels=16, **kwargs):
    """A CENorm in float64 whose parameters and buffers are all away from their starting values."""
    torch.manual_seed(0)
    ce = CENorm(channels, **kwargs).double()
    with torch.no_grad():
        for p in ce.parameters():
            p.add_(0.3 * torch.randn_like(p))
        ce.norm.running_mean.normal_()
        ce.norm.running_var.uniform_(0.5, 2)
        if ce.bd is not None:
            ce.bd.running_whitening.add_(0.1 * torch.randn_like(ce.bd.running_whitening))
        if ce.ir is not None:
            ce.ir.running_inv_std_scale.fill_(0.7)
    return ce


def batch(channels=16, n=3, h=6, w=5, seed=1, **kwargs):
    return torch.randn(n, channels, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), **kwargs)


def gate_of(ir):
    return None if ir is None else Gate(ir.fc1.weight, ir.ln.weight, ir.ln.bias, ir.fc2.weight)


def gradients(y, x, module, dy):
    return torch.autograd.grad(y, [x, *module.parameters()], dy)


def oracle(ce, x, **kwargs):
    running = None
    if not ce.norm.training:
        running = Averages(
            None if ce.bd is None else ce.bd.running_whitening.clone(),
            None if ce.ir is None else ce.ir.running_inv_std_scale.clone(),
        )
    bn = ce.norm
    momentum = 0.1 if bn.training else 0.0
    # PyTorch's own kernel, which nn.BatchNorm2d does not let near a single value.
    base = torch.native_batch_norm(
        x, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.training, momentum, bn.eps
    )[0]
    bn.num_batches_tracked += bn.training
    return equilibrium(base, gate_of(ce.ir), ce.mix, running=running, **kwargs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "kwargs",
    [
        dict(),
        dict(group_size=4, iterations=5),
        dict(branches=("bd",)),
        dict(branches=("ir",)),
        dict(max_pool=True),
        dict(correction=1),
        dict(channels=58, group_size=16),
        dict(reduction=16),
    ],
    ids=str,
)
def test_outputs_gradients_and_buffers_equal_the_paper_s_equations(kwargs, training):
    ce = layer(**kwargs).train(training)
    kwargs = {k: v for k, v in kwargs.items() if k not in ("channels", "reduction")}
    x = batch(ce.num_features, requires_grad=True)
    twin = copy.deepcopy(ce)
    expected, statistics = oracle(twin, x, **kwargs)
    y = ce(x)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    dy = torch.randn_like(y)
    for mine, theirs in zip(gradients(y, x, ce, dy), gradients(expected, x, twin, dy), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ce.norm.state_dict(), twin.norm.state_dict())
    if training and ce.bd is not None:
        averaged = 0.9 * twin.bd.running_whitening + 0.1 * statistics.whitening
        torch.testing.assert_close(ce.bd.running_whitening, averaged)
    if training and ce.ir is not None:
        averaged = 0.9 * twin.ir.running_inv_std_scale + 0.1 * statistics.inv_std_scale
        torch.testing.assert_close(ce.ir.running_inv_std_scale, averaged)


@settings(max_examples=100)
@given(
    shape=st.tuples(st.integers(1, 4), st.sampled_from([4, 6, 16, 24, 58]), st.integers(1, 7), st.integers(1, 7)),
    group_size=st.sampled_from([1, 2, 4, 16]),
    branches=st.sampled_from([("bd", "ir"), ("bd",), ("ir",)]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    training=st.booleans(),
    has_residual=st.booleans(),
    rectifier=st.sampled_from([None, RELU, 0.5]),
    far=st.booleans(),
)
def test_any_layer_equals_the_paper_s_equations(
    shape, group_size, branches, dtype, layout, training, has_residual, rectifier, far
):
    n, c, h, w = shape
    ce = layer(c, group_size=group_size, branches=branches, reduction=2).train(training)
    far = far and dtype == torch.float32  # the oracle itself, in float64, is good enough only for float32
    x = batch(c, n, h, w).add(1000 if far else 0)
    x = x.to(dtype).contiguous(memory_format=layout)
    residual = batch(c, n, h, w, seed=2).to(dtype) if has_residual else None
    if far:
        ce.norm.running_mean.add_(1000)
    ce = ce.to(ops.compute_dtype(dtype))
    twin = copy.deepcopy(ce).double()
    expected = oracle(twin, x.double(), branches=branches, group_size=group_size)[0]
    expected = expected if residual is None else expected + residual.double()
    y = ce(x, residual, rectifier)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=layout)
    error = (y.double() - (expected if rectifier is None else expected.clamp(0, rectifier))).abs().max()
    rounding = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    assert error <= rounding * expected.abs().max()


@pytest.mark.parametrize("case", ["c64_g16", "c64_g64_stem", "c58_g2", "c32_g16_maxpool"])
def test_the_numbers_of_the_authors_code_are_met(case, shared):
    with np.load(shared / "reference/ce_golden.npz") as file:
        names = [name for name in file.files if name.startswith(f"{case}/")]
        golden = {name.removeprefix(f"{case}/"): torch.from_numpy(file[name]) for name in names}
    ce = CENorm(
        len(golden["gamma"]), group_size=int(golden["group_size"]), max_pool=bool(golden["max_pool"]), correction=1
    ).double()
    parameters = dict(
        gamma=ce.norm.weight, beta=ce.norm.bias, mix_logit=ce.mix, fc1=ce.ir.fc1.weight, ln_weight=ce.ir.ln.weight,
        ln_bias=ce.ir.ln.bias, fc2=ce.ir.fc2.weight,
    )  # fmt: skip
    for name, parameter in parameters.items():
        parameter.data.copy_(golden[name])

    results, inv_std_scale = {}, torch.ones(1, dtype=torch.float64)
    for x, y_train in zip(golden["x_train"], golden["y_train"], strict=True):
        x.requires_grad_()
        y = ce(x)
        assert (y - y_train).abs().max() <= 1e-12 * y_train.abs().max()
        variance = copy.deepcopy(ce.norm)(x).var(dim=(2, 3))
        inv_std_scale = 0.9 * inv_std_scale + 0.1 * variance.mean().rsqrt()
    grads = torch.autograd.grad(y, [x, *parameters.values()], golden["dy_last"])
    results |= {"dx_last": grads[0]} | {f"d_{name}": g for name, g in zip(parameters, grads[1:], strict=True)}
    results |= dict(
        running_mean=ce.norm.running_mean, running_var=ce.norm.running_var, running_whitening=ce.bd.running_whitening
    )
    torch.testing.assert_close(ce.ir.running_inv_std_scale, inv_std_scale.detach(), rtol=1e-6, atol=0)
    ce.eval()
    ce.ir.running_inv_std_scale.copy_(1 / golden["running_std_scale"])
    results["y_eval"] = ce(golden["x_eval"])
    for name, value in results.items():
        assert (value - golden[name]).abs().max() <= 1e-12 * golden[name].abs().max(), name


def test_without_branches_it_is_the_base_norm():
    ce, bn, x = CENorm(8, branches=()), nn.BatchNorm2d(8), torch.randn(2, 8, 4, 4)
    assert torch.equal(ce(x), bn(x))
    assert torch.equal(ce.eval()(x), bn.eval()(x))
    assert set(ce.state_dict()) == {f"norm.{name}" for name in bn.state_dict()}


def test_the_state_has_the_names_that_checkpoints_use():
    assert {name: tuple(value.shape) for name, value in CENorm(32).state_dict().items()} == {
        "mix": (1,),
        "norm.weight": (32,),
        "norm.bias": (32,),
        "norm.running_mean": (32,),
        "norm.running_var": (32,),
        "norm.num_batches_tracked": (),
        "bd.running_whitening": (2, 16, 16),
        "ir.running_inv_std_scale": (1,),
        "ir.fc1.weight": (8, 32),
        "ir.ln.weight": (8,),
        "ir.ln.bias": (8,),
        "ir.fc2.weight": (32, 8),
    }


@pytest.mark.parametrize("branches", [("bd", "ir"), ()])
@pytest.mark.parametrize("rectifier", [RELU, RELU6])
def test_residual_and_rectifier_are_those_of_the_network(rectifier, branches):
    ce, x, residual = layer(branches=branches), batch(), batch(seed=2) * 6
    plain = copy.deepcopy(ce)(x)
    expected = (plain + residual).clamp(0, rectifier)
    torch.testing.assert_close(ce(x, residual=residual, rectifier=rectifier), expected)


@pytest.mark.parametrize("training", [False, True])
def test_with_permission_the_result_stands_in_the_input_s_memory_unless_a_hook_has_it(training):
    layer = CENorm(16).train(training)
    x = torch.randn(2, 16, 3, 5)
    expected = layer(x, rectifier=RELU)
    hooks = layer.register_forward_hook, layer.register_forward_pre_hook, layer.bd.register_forward_hook
    with torch.no_grad():
        for hook in (*hooks, register_module_forward_hook, register_module_forward_pre_hook):
            handle, before = hook(lambda *_: None), x.clone()
            layer(x, rectifier=RELU, overwrite=True)
            handle.remove()
            assert torch.equal(x, before)
        y = layer(x, rectifier=RELU, overwrite=True)
    assert y.data_ptr() == x.data_ptr()
    assert torch.equal(y, expected)


def test_a_hook_of_the_base_norm_keeps_its_result():
    ce, kept, x = CENorm(16, branches=()), [], batch().float()
    ce.norm.register_forward_hook(lambda module, inputs, output: kept.append((output, output.detach().clone())))
    ce(x, residual=x, rectifier=RELU)
    assert torch.equal(*kept[0])


def test_the_layer_passes_gradcheck():
    ce = layer(4, group_size=2, reduction=2)
    names = list(dict(ce.named_parameters()))

    def function(x, *values):
        return torch.func.functional_call(copy.deepcopy(ce), dict(zip(names, values, strict=True)), x)

    inputs = [batch(4, 2, 3, 2), *(p.detach().clone() for p in ce.parameters())]
    assert torch.autograd.gradcheck(function, [value.requires_grad_() for value in inputs])


def test_a_mean_of_a_thousand_spreads_costs_no_precision():
    torch.manual_seed(0)
    x64 = torch.randn(4, 32, 14, 14, dtype=torch.float64) + 1000 * torch.randn(32, dtype=torch.float64)[:, None, None]
    x32 = x64.float()
    single, double = CENorm(32), CENorm(32).double()
    double.load_state_dict(single.state_dict())
    y32, y64 = single(x32.requires_grad_()), double(x32.detach().double().requires_grad_())
    assert (y32 - y64).abs().max() <= 2e-6 * y64.abs().max()
    dy = torch.randn_like(y64)
    dx32 = torch.autograd.grad(y32, x32, dy.float())[0]
    double_x = x32.detach().double().requires_grad_()
    dx64 = torch.autograd.grad(double(double_x), double_x, dy)[0]
    assert (dx32 - dx64).abs().max() <= 5e-6 * dx64.abs().max()


@pytest.mark.parametrize("ratio", [10, 1e3, 1e4])
@pytest.mark.parametrize("branches", [ALL, ("ir",)])
def test_samples_that_are_nearly_flat_but_far_from_each_other_cost_no_precision(ratio, branches):
    torch.manual_seed(0)
    x32 = (torch.randn(8, 32, 14, 14) + ratio * torch.randn(8, 32, 1, 1)).requires_grad_()
    single = CENorm(32, branches=branches)
    double, x64 = copy.deepcopy(single).double(), x32.detach().double().requires_grad_()
    y32, y64, dy = single(x32), double(x64), torch.randn(x32.shape)
    assert (y32 - y64).abs().max() <= 2e-6 * y64.abs().max()
    for mine, exact in zip(gradients(y32, x32, single, dy), gradients(y64, x64, double, dy.double()), strict=True):
        assert (mine - exact).abs().max() <= 2e-5 * exact.abs().max()


def test_a_mean_that_is_just_not_shifted_away_costs_a_relative_error_below_4e_6():
    torch.manual_seed(0)
    x = torch.randn(8, 32, 28, 28)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True) + 4.99
    assert not ops.moments(x, 16).shift.any() and ops.moments(x + 0.02, 16).shift.any()
    single, double = CENorm(32), CENorm(32).double()
    double.load_state_dict(single.state_dict())
    y = double(x.double())
    assert (single(x) - y).abs().max() <= 4e-6 * y.abs().max()


def test_two_runs_are_identical_to_the_last_bit():
    x, results = torch.randn(4, 32, 9, 9), []
    torch.manual_seed(0)
    ce = CENorm(32)
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        y = copy.deepcopy(ce)(leaf, rectifier=RELU)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaf)])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rectifier", [RELU, RELU6])
def test_backward_keeps_no_map_but_the_input_and_the_rectified_output(training, rectifier):
    ce, kept = CENorm(32).train(training), []
    x, residual = torch.randn(4, 32, 20, 20, requires_grad=True), torch.randn(4, 32, 20, 20, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        plain = ce(x)
        rectified = ce(x, residual, rectifier=rectifier)
    maps = {tensor.data_ptr() for tensor in kept if tensor.numel() >= x.numel() / 4}
    assert maps == {x.data_ptr(), rectified.data_ptr()}
    assert plain.data_ptr() not in maps


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_both_layouts_give_the_same_and_keep_their_layout(memory_format):
    ce, x = layer(), batch()
    y = copy.deepcopy(ce)(x.contiguous(memory_format=memory_format))
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, ce(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_computes_in_float32_and_returns_the_type_of_x(dtype):
    ce = CENorm(32)
    x = torch.randn(2, 32, 8, 8).to(dtype)
    expected = copy.deepcopy(ce)(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ce(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected.to(dtype))


@pytest.mark.parametrize("shape", [(0, 32, 4, 4), (1, 32, 1, 1), (1, 32, 8, 8), (4, 32, 1, 1)], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kwargs", [dict(), dict(max_pool=True), dict(correction=1), dict(branches=("ir",))], ids=str)
def test_small_and_empty_batches_give_finite_numbers(shape, training, kwargs):
    ce = CENorm(32, **kwargs).train(training)
    x = torch.randn(shape, requires_grad=True)
    y = ce(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    for value in [y, x.grad, *(p.grad for p in ce.parameters()), *ce.buffers()]:
        assert value.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_constant_channels_and_a_zero_gamma_give_finite_numbers(training):
    ce = CENorm(32).train(training)
    nn.init.zeros_(ce.weight)
    x = torch.full((2, 32, 4, 4), 3.0, requires_grad=True)
    y = ce(x)
    y.square().sum().backward()
    for value in [y, x.grad, *(p.grad for p in ce.parameters()), *ce.buffers()]:
        assert value.isfinite().all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_a_batch_that_is_not_finite_neither_raises_nor_moves_a_buffer(poison):
    ce = CENorm(32)
    ce(torch.randn(2, 32, 4, 4))
    before = {name: value.clone() for name, value in ce.state_dict().items()}
    assert bool(ce.finite)
    x = torch.randn(2, 32, 4, 4)
    x[1, 5, 2, 2] = poison
    ce(x)
    for name, value in ce.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not bool(ce.finite)


def test_the_base_norm_in_eval_mode_freezes_ce_too():
    ce = layer()
    ce.norm.eval()
    before = copy.deepcopy(ce.state_dict())
    x = batch()
    torch.testing.assert_close(ce(x), copy.deepcopy(ce).eval()(x))
    torch.testing.assert_close(dict(ce.state_dict()), dict(before), rtol=0, atol=0)


def test_a_cumulative_average_is_pytorch_s():
    ce, bn = CENorm(8, norm=dict(type="BN", momentum=None)).double(), nn.BatchNorm2d(8, momentum=None).double()
    for seed in range(3):
        ce(batch(8, seed=seed))
        bn(batch(8, seed=seed))
    torch.testing.assert_close(ce.norm.state_dict(), bn.state_dict())


@pytest.mark.parametrize("key", ["", "bn3."])
def test_a_plain_norm_s_weights_fill_the_base_norm(key):
    bn = nn.BatchNorm2d(32)
    nn.init.normal_(bn.weight)
    module = CENorm(32) if not key else nn.ModuleDict({"bn3": CENorm(32)})
    ours = module if not key else module["bn3"]
    report = module.load_state_dict({key + name: value for name, value in bn.state_dict().items()}, strict=False)
    assert not report.unexpected_keys
    assert not any(".norm." in name or name.startswith("norm.") for name in report.missing_keys)
    assert torch.equal(ours.norm.weight, bn.weight)


def test_any_other_function_is_applied_to_all_of_ce():
    ce, seen = CENorm(16), []
    assert ce.apply(seen.append) is ce
    assert seen[-1] is ce and set(seen) == set(ce.modules())


@pytest.mark.parametrize("norm", [dict(type="BN"), dict(type="GN", num_groups=2)], ids=str)
@pytest.mark.parametrize("name", ["fc1", "ln", "fc2"])
def test_what_is_put_in_the_place_of_a_layer_of_ir_is_refused(norm, name):
    ce, x = CENorm(16, norm=norm), torch.randn(2, 16, 3, 3)
    setattr(ce.ir, name, Adapted(getattr(ce.ir, name)))
    for use, argument in ((ce, x), (fold, ce)):
        with pytest.raises(TypeError, match=rf"ir.{name} must be a plain nn.L.*, got Adapted"):
            use(argument)


@pytest.mark.parametrize(
    "change",
    [
        lambda ir: prune.l1_unstructured(ir.fc1, "weight", amount=0.5),
        lambda ir: nn.utils.spectral_norm(ir.fc2),
        lambda ir: setattr(ir.fc1, "forward", lambda x: x),
        lambda ir: setattr(ir, "ln", nn.LayerNorm(4, elementwise_affine=False)),
    ],
    ids=["pruned", "spectral norm", "forward", "without weights"],
)
def test_what_would_have_to_be_called_in_ir_is_refused(change):
    ce = CENorm(16)
    change(ce.ir)
    with pytest.raises(TypeError, match=r"ir\.\w+ must be a plain nn\.L"):
        ce(torch.randn(2, 16, 3, 3))


def test_a_linear_layer_with_a_bias_is_refused_in_ir():
    ce = CENorm(16)
    ce.ir.fc2 = nn.Linear(4, 16)
    with pytest.raises(TypeError, match=r"ir.fc2 must be a plain nn.Linear without bias"):
        ce(torch.randn(2, 16, 3, 3))


def test_a_parametrised_layer_of_ir_is_computed_with_its_parametrisation():
    ce, x = layer().eval(), batch()
    twin = copy.deepcopy(ce)
    parametrize.register_parametrization(ce.ir.fc1, "weight", nn.Softplus())
    twin.ir.fc1.weight.data = F.softplus(twin.ir.fc1.weight)
    torch.testing.assert_close(ce(x), twin(x))


def test_a_norm_that_is_put_in_the_base_norm_s_place_is_computed_or_refused():
    x = torch.randn(2, 16, 3, 3)
    for norm in (dict(type="GN", num_groups=4), dict(type="SN")):
        torch.manual_seed(0)
        expected, ce = CENorm(16, norm=norm), CENorm(16)
        ce.load_state_dict(expected.state_dict(), strict=False)
        ce.norm = copy.deepcopy(expected.norm)
        torch.testing.assert_close(ce(x), expected(x))
    for other in (nn.Identity(), nn.LayerNorm(16), FrozenBatchNorm2d(16)):
        ce.norm = other
        with pytest.raises(TypeError, match=r"CE's base norm must be .*, got "):
            ce(x)


class Adapted(nn.Module):
    """An adapter, as low-rank adaptation puts around a layer."""

    def __init__(self, of):
        super().__init__()
        self.of, self.weight = of, of.weight

    def forward(self, x):
        return 2 * self.of(x)


def test_a_branch_with_a_forward_of_its_own_is_refused_since_branches_are_never_called():
    with pytest.raises(TypeError, match=r"Halved has a forward, which would never be called"):

        class Halved(BatchDecorrelation):
            def forward(self, x):
                return x / 2


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        (dict(group_size=0), "group_size"),
        (dict(group_size=-16), "group_size"),
        (dict(iterations=0), "iterations"),
        (dict(reduction=33), "reduction"),
        (dict(reduction=0), "reduction"),
        (dict(branches=("bd", "se")), "branches"),
        (dict(branches="bd"), "branches"),
        (dict(momentum=1.5), "momentum"),
        (dict(eps=0.0), "eps"),
        (dict(correction=2), "correction"),
        (dict(sync="yes"), "sync"),
        (dict(num_features=0), "num_features"),
        (dict(num_features=True), "num_features"),
        (dict(group_size="16"), "group_size"),
        (dict(group_size=True), "group_size"),
        (dict(reduction=4.0), "reduction"),
        (dict(branches=None), "branches"),
        (dict(branches=[["bd"]]), "branches"),
        (dict(momentum="0.1"), "momentum"),
        (dict(momentum=None), "momentum"),
        (dict(eps="1e-5"), "eps"),
        (dict(eps=float("inf")), "eps"),
        (dict(correction=None), "correction"),
        (dict(max_pool="no"), "max_pool"),
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_named(kwargs, named):
    with pytest.raises(ValueError, match=f"CENorm's {named} must be .*, got"):
        CENorm(**dict(num_features=32) | kwargs)


@pytest.mark.parametrize("shape", [(2, 32, 4), (2, 16, 4, 4), (32,), (2, 32, 4, 4, 4)], ids=str)
def test_an_input_of_another_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"takes a map of shape \(N, 32, H, W\), got \("):
        CENorm(32)(torch.zeros(shape))


@pytest.mark.parametrize("branches", [ALL, ()])
@pytest.mark.parametrize("shape", [(1, 32, 4, 5), (6, 32, 4, 5), (3, 32, 5, 4), (32, 1, 1), ()], ids=str)
def test_a_residual_of_another_shape_is_named_before_anything_moves(shape, branches):
    ce = CENorm(32, branches=branches)
    with pytest.raises(ValueError, match=r"CENorm\(32\) adds a residual of .* \(3, 32, 4, 5\) on cpu, got \("):
        ce(torch.randn(3, 32, 4, 5), residual=torch.zeros(shape))
    assert ce.norm.num_batches_tracked == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_gradient_flows_where_a_ceiling_that_the_type_rounds_has_cut_off(dtype):
    residual = torch.randn(4, 16, 5, 5).to(dtype).requires_grad_()
    y = CENorm(16)(torch.randn(4, 16, 5, 5).to(dtype), residual, 0.7)
    y.sum().backward()
    cut = y == torch.tensor(0.7, dtype=dtype)
    assert cut.any()
    assert not residual.grad[cut].any()


@pytest.mark.parametrize("norm", [dict(type="BN"), dict(type="GN", num_groups=4), dict(type="SN")], ids=str)
@pytest.mark.parametrize("branches", [ALL, ("bd",), ("ir",)], ids=str)
def test_a_backward_inside_of_autocast_is_one_outside_of_it(norm, branches):
    torch.manual_seed(0)
    ce, x = CENorm(16, norm=norm, branches=branches), torch.randn(4, 16, 5, 5)
    found = []
    for inside in (True, False):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = ce(leaf).square().sum()
            if inside:
                y.backward()
        if not inside:
            y.backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("rectifier", [True, 0, -6.0, float("nan")])
@pytest.mark.parametrize("module", [CENorm(16), CENorm(16, branches=()), fold(CENorm(16))], ids=["CE", "BN", "folded"])
def test_a_rectifier_that_is_no_ceiling_is_named(module, rectifier):
    with pytest.raises(ValueError, match=r"rectifier must be its ceiling, ops\.RELU or a number above 0, got"):
        module(torch.randn(2, 16, 3, 3), rectifier=rectifier)


def test_a_residual_on_another_device_is_named():
    with pytest.raises(ValueError, match=r"on cpu, got .* on meta"):
        CENorm(4)(torch.randn(1, 4, 2, 2), residual=torch.zeros(1, 4, 2, 2, device="meta"))


@pytest.mark.parametrize(
    "of",
    [lambda r: r.double(), lambda r: r.bfloat16(), lambda r: r.contiguous(memory_format=torch.channels_last),
     lambda r: r[:1, :, :1, :1].expand_as(r), lambda r: r.mT.contiguous().mT],
    ids=["double", "bfloat16", "channels_last", "expanded", "transposed"],
)  # fmt: skip
def test_a_residual_may_be_of_any_type_and_layout(of):
    ce, x = layer().eval().float(), batch().float()
    residual = of(batch(seed=2).float()).requires_grad_()
    y = ce(x, residual)
    torch.testing.assert_close(y, ce(x) + residual.float())
    (gradient,) = torch.autograd.grad(y.sum(), residual)
    assert torch.equal(gradient, torch.ones_like(residual))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
@pytest.mark.parametrize("module", [CENorm(4), CENorm(4, branches=()), SwitchableNorm(4), fold(CENorm(4))])
def test_a_map_of_no_floating_type_is_named(module, dtype):
    with pytest.raises(TypeError, match=rf"\w+\(4\) takes a map of a floating type, got {dtype}"):
        module(torch.ones(1, 4, 2, 2, dtype=dtype))


def test_a_base_norm_that_something_has_sharded_by_itself_is_refused():
    ce = CENorm(16)
    ce.norm.weight = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(RuntimeError, match=r"holds 0 weights for 16 channels.*FSDP"):
        ce(torch.randn(2, 16, 3, 3))
