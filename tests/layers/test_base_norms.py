"""Every base norm under CE: PyTorch's own norm (for SN the reference's), then the paper's equations."""
import copy
import re

import pytest
import torch
from literal_layer import literal_layer, literal_norm
from torch import nn

from ce_mm.layers import CENorm, norms
from ce_mm.ops import RELU

BN, LN, SN = dict(type="BN"), dict(type="LN"), dict(type="SN")
GN = dict(type="GN", num_groups=2)
IN, AFFINE_IN = dict(type="IN"), dict(type="IN", affine=True)
ALL = [BN, GN, IN, AFFINE_IN, LN, SN]
BRANCHES = [("bd", "ir"), ("bd",), ("ir",)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


class BatchNormOfItsOwn(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def layer(norm, channels=16, **kwargs):
    """A CENorm in float64 whose parameters and buffers are all away from their starting values."""
    torch.manual_seed(0)
    ce = CENorm(channels, norm=norm, group_size=4, **kwargs).double()
    with torch.no_grad():
        for p in ce.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for buffer in ce.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.1 * torch.rand_like(buffer))
    return ce


def batch(n=3, channels=16, h=6, w=5, seed=1):
    return torch.randn(n, channels, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("branches", BRANCHES, ids=str)
@pytest.mark.parametrize("norm", ALL, ids=str)
def test_outputs_gradients_and_buffers_equal_the_norm_and_then_the_paper_s_equations(norm, branches, training):
    assert_equal_to_the_oracle(layer(norm, branches=branches).train(training), batch())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("norm", [GN, IN, LN, SN], ids=str)
def test_the_residual_and_the_relu_follow_in_both_layouts(norm, layout):
    x, residual = (batch(seed=seed).contiguous(memory_format=layout) for seed in (1, 2))
    assert_equal_to_the_oracle(layer(norm), x, residual, rectifier=RELU)


@pytest.mark.parametrize("norm", [GN, IN, AFFINE_IN, LN, SN], ids=str)
def test_a_max_pool_is_that_of_the_normalised_map(norm):
    assert_equal_to_the_oracle(layer(norm, max_pool=True), batch(), max_pool=True)


@pytest.mark.parametrize("norm", [GN, LN, SN], ids=str)
@pytest.mark.parametrize("shape", [(1, 16, 3, 3), (1, 16, 1, 1), (4, 16, 1, 1)], ids=str)
def test_one_sample_and_one_position_are_no_exception(norm, shape):
    ce = layer(norm)
    if shape[0] == 1 and norm == SN:
        ce.eval()  # a single value is no batch for PyTorch's batch norm, with which the buffers are compared
    assert_equal_to_the_oracle(ce, batch(shape[0], 16, *shape[2:]))


def assert_equal_to_the_oracle(ce, x, residual=None, rectifier=None, **kwargs):
    twin = copy.deepcopy(ce)
    leaves = [value.requires_grad_() for value in (x, residual) if value is not None]
    expected, buffers = literal_layer(twin, x, **kwargs)
    expected = expected if residual is None else expected + residual
    expected = expected if rectifier is None else expected.clamp(0, rectifier)
    y = ce(x, residual, rectifier)
    assert y.stride() == x.stride()
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    dy = torch.randn_like(y)
    mine = torch.autograd.grad(y, [*leaves, *ce.parameters()], dy)
    theirs = torch.autograd.grad(expected, [*leaves, *twin.parameters()], dy)
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(dict(ce.named_buffers()), buffers)


@pytest.mark.parametrize("common", [True, False], ids=["one mean for all channels", "a mean for each"])
@pytest.mark.parametrize("norm", [GN, IN, LN, SN], ids=str)
def test_a_mean_of_a_thousand_spreads_costs_no_precision(norm, common):
    torch.manual_seed(0)
    means = torch.ones(32) if common else torch.randn(32)
    x32 = (torch.randn(4, 32, 14, 14, dtype=torch.float64) + 1000 * means.double()[:, None, None]).float()
    single, double = CENorm(32, norm=norm), CENorm(32, norm=norm).double()
    double.load_state_dict(single.state_dict())
    x64, dy = x32.double().requires_grad_(), torch.randn(4, 32, 14, 14, dtype=torch.float64)
    y32, y64 = single(x32.requires_grad_()), double(x64)
    assert (y32 - y64).abs().max() <= 2e-6 * y64.abs().max()
    dx32, dx64 = torch.autograd.grad(y32, x32, dy.float())[0], torch.autograd.grad(y64, x64, dy)[0]
    # Where a norm over channels shrinks their spreads to a thousandth, so it does what differs between samples.
    assert (dx32 - dx64).abs().max() <= (5e-6 if common else 5e-5) * dx64.abs().max()


def with_a_constant_sample(x):
    x[3] = 30 * torch.randn(32)[:, None, None]
    return x


def with_an_offset_for_each_sample(x):
    return x + 1000 * torch.randn(8, 1, 1, 1)


@pytest.mark.parametrize("far", [with_a_constant_sample, with_an_offset_for_each_sample])
@pytest.mark.parametrize("norm", [GN, AFFINE_IN, LN, SN], ids=str)
def test_samples_far_from_each_other_cost_no_precision(norm, far):
    torch.manual_seed(0)
    single, double = CENorm(32, norm=norm), CENorm(32, norm=norm).double()
    double.load_state_dict(single.state_dict())
    x32 = far(torch.randn(8, 32, 14, 14)).requires_grad_()
    x64, dy = x32.detach().double().requires_grad_(), torch.randn(8, 32, 14, 14)
    y32, y64 = single(x32), double(x64)
    dx32, dx64 = torch.autograd.grad(y32, x32, dy)[0], torch.autograd.grad(y64, x64, dy.double())[0]
    for mine, exact in ((y32, y64), (dx32, dx64), (single.bd.running_whitening, double.bd.running_whitening)):
        assert (mine - exact).abs().max() <= 2e-6 * exact.abs().max()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", [GN, IN, LN, SN], ids=str)
def test_backward_keeps_no_map_but_the_input_and_the_rectified_output(norm, training):
    ce, kept = CENorm(32, norm=norm).train(training), []
    x, residual = torch.randn(4, 32, 20, 20, requires_grad=True), torch.randn(4, 32, 20, 20, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        plain = ce(x)
        rectified = ce(x, residual, rectifier=RELU)
    maps = {tensor.data_ptr() for tensor in kept if tensor.numel() >= x.numel() / 4}
    assert maps == {x.data_ptr(), rectified.data_ptr()}
    assert plain.data_ptr() not in maps


def assert_finite(ce, x):
    y = ce(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    for value in [y, x.grad, *(p.grad for p in ce.parameters()), *ce.buffers()]:
        assert value.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kwargs", [dict(), dict(max_pool=True), dict(branches=("ir",))], ids=str)
@pytest.mark.parametrize("shape", [(0, 32, 4, 4), (1, 32, 1, 1), (1, 32, 8, 8), (4, 32, 1, 1)], ids=str)
@pytest.mark.parametrize("norm", [GN, IN, AFFINE_IN, LN, SN], ids=str)
def test_small_and_empty_batches_give_finite_numbers(norm, shape, kwargs, training):
    assert_finite(CENorm(32, norm=norm, **kwargs).train(training), torch.randn(shape, requires_grad=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", [GN, AFFINE_IN, LN, SN], ids=str)
def test_constant_channels_and_a_zero_gamma_give_finite_numbers(norm, training):
    ce = CENorm(32, norm=norm).train(training)
    assert_finite(ce, torch.full((2, 32, 4, 4), 3.0, requires_grad=True))
    nn.init.zeros_(ce.weight)
    assert_finite(ce, torch.full((2, 32, 4, 4), 3.0, requires_grad=True))


def test_instance_norm_of_one_position_is_its_bias():
    ce, x = layer(AFFINE_IN), batch(3, 16, 1, 1)
    base = ce.norm.bias[:, None, None].expand_as(x)
    ce.norm.forward = lambda x: base  # PyTorch's own refuses one position
    torch.testing.assert_close(copy.deepcopy(ce)(x), literal_layer(ce, x)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", [GN, IN, LN, SN], ids=str)
def test_autocast_computes_in_float32_and_returns_the_type_of_x(norm, dtype):
    ce, x = CENorm(32, norm=norm), torch.randn(2, 32, 8, 8).to(dtype)
    expected = copy.deepcopy(ce)(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ce(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected.to(dtype))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("norm", [GN, IN, LN, SN], ids=str)
def test_a_batch_that_is_not_finite_neither_raises_nor_moves_a_buffer(norm, poison):
    ce, x = CENorm(32, norm=norm), torch.randn(2, 32, 4, 4)
    ce(x)
    before = copy.deepcopy(ce.state_dict())
    x[1, 5, 2, 2] = poison
    ce(x)
    torch.testing.assert_close(dict(ce.state_dict()), dict(before), rtol=0, atol=0)
    assert not bool(ce.finite)


@pytest.mark.parametrize("norm", [GN, IN, LN, SN], ids=str)
def test_the_base_norm_in_eval_mode_freezes_ce_too(norm):
    ce, x = layer(norm), batch()
    ce.norm.eval()
    before = copy.deepcopy(ce.state_dict())
    torch.testing.assert_close(ce(x), copy.deepcopy(ce).eval()(x))
    torch.testing.assert_close(dict(ce.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize("norm", [GN, AFFINE_IN, LN, SN], ids=str)
def test_without_branches_it_is_the_base_norm(norm):
    ce, x = CENorm(16, norm=norm, branches=()).double(), batch()
    torch.testing.assert_close(ce(x), literal_norm(copy.deepcopy(ce.norm), x))


@pytest.mark.parametrize("norm", [GN, SN], ids=str)
def test_a_plain_norm_s_weights_fill_the_base_norm(norm):
    ce = CENorm(16, norm=norm)
    plain = copy.deepcopy(ce.norm)
    for p in plain.parameters():
        nn.init.normal_(p)
    report = ce.load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert not any(name.startswith("norm.") for name in report.missing_keys)
    torch.testing.assert_close(dict(ce.norm.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)


def test_what_a_norm_s_config_asks_for_is_what_it_gets():
    assert CENorm(16, norm=dict(type="GN", num_groups=4, eps=1e-3)).norm.eps == 1e-3
    assert CENorm(16, norm=LN).norm.num_groups == 1
    assert CENorm(16, norm=IN).weight is None
    assert not CENorm(16, norm=dict(type="SN", requires_grad=False)).norm.mean_weight.requires_grad


@pytest.mark.parametrize(
    "norm",
    [
        dict(type="BN", track_running_stats=False),
        dict(type="IN", track_running_stats=True),
        dict(type="BN1d"),
        dict(type=nn.LayerNorm),
        dict(type=BatchNormOfItsOwn),
        dict(type="CE"),
        dict(type="Bn"),
        dict(type="BN", epsilon=1e-3),
        dict(type="BN", requires_grad="no"),
        dict(type=None),
        dict(),
        "GN",
        ["BN"],
        True,
    ],
    ids=str,
)
def test_a_base_norm_that_ce_cannot_stand_on_is_named(norm):
    got = re.escape(repr(norm))
    with pytest.raises(TypeError, match=rf"CE's base norm must be .*, got {got}; set for example norm="):
        CENorm(32, norm=norm)


@pytest.mark.parametrize("norm", [BN, GN, SN], ids=str)
@pytest.mark.parametrize("eps", ["1e-5", None, -1])
def test_a_base_norm_s_eps_is_a_number(norm, eps):
    with pytest.raises(ValueError, match=rf"eps .*must be a number of at least 0, got {eps!r}"):
        CENorm(16, norm=dict(norm, eps=eps))


@pytest.mark.parametrize("groups", [{}, *(dict(num_groups=groups) for groups in (5, 0, 4.0, "4"))], ids=str)
def test_groups_that_do_not_divide_the_channels_are_named(groups):
    with pytest.raises(ValueError, match="must have a num_groups that divides the 32 channels, got num_groups="):
        CENorm(32, norm=dict(type="GN", **groups))


@pytest.mark.parametrize("norm", [GN, SN], ids=str)
def test_a_compiled_layer_trains_the_same(norm):
    ce, x = layer(norm), batch().requires_grad_()
    twin = copy.deepcopy(ce)
    y = ce(x)
    torch.compiler.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, y)
    torch.testing.assert_close(*(torch.autograd.grad(value.square().sum(), x)[0] for value in (compiled, y)))
    torch.testing.assert_close(dict(twin.named_buffers()), dict(ce.named_buffers()))


def test_a_kind_without_a_module_is_not_added():
    before = list(norms.KINDS)
    with pytest.raises(AttributeError, match="module"):
        norms.add_kind(type("Unfinished", (norms.Kind,), dict(names=("U",))))
    assert before == norms.KINDS


def test_a_kind_in_the_place_of_bn_also_takes_a_sync_bn_that_has_its_batch_for_itself(monkeypatch):
    monkeypatch.setattr(norms, "KINDS", list(norms.KINDS))
    monkeypatch.setattr(norms, "EXACT", dict(norms.EXACT))
    other = norms.add_kind(type("Other", (norms.BatchNorm,), {}))
    assert norms.kind_of(nn.SyncBatchNorm(8)) is norms.kind_of(nn.BatchNorm2d(8)) is other
