import copy

import pytest
import torch
from moved_layers import batch, moved, relative_error
from torch import nn

from ce_mm.layers import CENorm, SwitchableNorm
from ce_mm.layers.folded import FoldedCE, fold
from ce_mm.ops import RELU

DYNAMIC = torch.export.Dim.DYNAMIC
SAMPLE_NORMS = [
    dict(type="GN", num_groups=2), dict(type="LN"), dict(type="IN"), dict(type="IN", affine=True), dict(type="SN")
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize(
    "kwargs",
    [
        dict(),
        dict(group_size=4),
        dict(group_size=1),
        dict(num_features=58),
        dict(num_features=7, reduction=7),
        dict(correction=1),
        dict(max_pool=True),
        dict(branches=("bd",)),
        dict(branches=("ir",)),
        dict(branches=("ir",), correction=1),
        dict(branches=()),
        dict(norm=dict(type="SyncBN", eps=1e-3)),
        dict(norm=dict(type="BN", affine=False)),
        *[dict(norm=norm) for norm in SAMPLE_NORMS],
        *[dict(norm=norm, branches=branches) for norm in SAMPLE_NORMS[::4] for branches in [("bd",), ("ir",), ()]],
    ],
    ids=str,
)
def test_a_folded_layer_computes_what_the_layer_does(kwargs, dtype, tolerance):
    ce = moved(CENorm(**dict(num_features=16) | kwargs)).to(dtype)
    x, residual = batch(channels=ce.num_features).to(dtype), batch(channels=ce.num_features, seed=2).to(dtype)
    folded = fold(ce)
    assert isinstance(folded, FoldedCE)
    assert relative_error(folded(x), ce(x)) < tolerance
    for rectifier in (dict(rectifier=RELU), dict(rectifier=0.5)):
        assert relative_error(folded(x, residual=residual, **rectifier), ce(x, residual, **rectifier)) < tolerance


def test_a_mean_of_a_thousand_spreads_costs_no_precision():
    ce = moved(CENorm(32))
    ce.norm.running_mean.mul_(1000)
    x = ce.norm.running_mean[:, None, None] + batch(channels=32)
    assert relative_error(fold(ce)(x), copy.deepcopy(ce).double()(x.double())) < 1e-5


@pytest.mark.parametrize("norm", SAMPLE_NORMS, ids=str)
def test_a_mean_of_a_thousand_spreads_costs_a_norm_of_samples_no_more_than_pytorch_s_own(norm):
    ce, x = moved(CENorm(32, norm=norm)), 1000 + batch(channels=32)
    rounding = 1000 * torch.finfo(torch.float32).eps  # of a mean
    assert relative_error(fold(ce)(x), copy.deepcopy(ce).double()(x.double())) < rounding


def test_a_sample_a_thousand_spreads_off_the_running_mean_keeps_its_gate():
    ce = moved(CENorm(32, branches=("ir",)))
    x = 1000 + batch(channels=32)
    assert relative_error(fold(ce)(x), copy.deepcopy(ce).double()(x.double())) < 1e-5


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (1, 16, 8, 8), (1, 16, 1, 1), (4, 16, 1, 1), (2, 16, 1, 2)], ids=str)
@pytest.mark.parametrize(
    "kwargs",
    [dict(), dict(correction=1), *(dict(branches=b) for b in [("ir",), ()]), *(dict(norm=n) for n in SAMPLE_NORMS)],
    ids=str,
)
def test_small_and_empty_batches_are_those_of_the_layer(shape, kwargs):
    ce, x = moved(CENorm(16, **kwargs)), batch(*shape)
    y = fold(ce)(x)
    assert y.isfinite().all()
    torch.testing.assert_close(y, ce.double()(x.double()).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [*(dict(branches=b) for b in [("bd", "ir"), ("bd",), ("ir",), ()]), *(dict(norm=norm) for norm in SAMPLE_NORMS)],
    ids=str,
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_both_layouts_give_the_same_and_keep_their_layout(memory_format, kwargs):
    folded, x = fold(moved(CENorm(16, **kwargs))), batch()
    y = folded(x.contiguous(memory_format=memory_format))
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, folded(x))


@pytest.mark.parametrize("rectifier", [None, RELU])
def test_the_output_shares_no_memory_with_the_input(rectifier):
    folded, x = fold(moved(CENorm(16, branches=()))), batch().abs()
    before = x.clone()
    folded(x, rectifier=rectifier).zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_and_autocast_compute_in_float32_and_return_the_type_of_x(dtype):
    ce = moved(CENorm(32))
    ce.norm.running_var.mul_(300**2)  # the variance of z, and 1/a², are beyond float16
    x = (300 * batch(channels=32)).to(dtype)
    folded, expected = fold(ce), ce(x.float()).to(dtype)
    torch.testing.assert_close(folded(x), expected)
    torch.testing.assert_close(copy.deepcopy(folded).to(dtype)(x), expected)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(folded(x), expected)


@pytest.mark.parametrize("branches", [("bd", "ir"), ()], ids=str)
def test_a_map_of_a_wider_type_keeps_it(branches):
    folded, x = fold(moved(CENorm(16, branches=branches))), batch()
    y = folded(x.double())
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.float(), folded(x))


def test_a_layer_of_half_type_is_folded_in_float32():
    ce = moved(CENorm(16)).half()
    folded, x = fold(ce), batch().half()
    assert {value.dtype for value in folded.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(folded(x), ce(x))


def test_training_mode_makes_no_difference_and_moves_nothing():
    ce, x = moved(CENorm(16)), batch()
    folded = fold(ce)
    assert not folded.training
    before = copy.deepcopy(folded.state_dict())
    folded.train()
    torch.testing.assert_close(folded(x), ce(x))
    torch.testing.assert_close(dict(folded.state_dict()), dict(before), rtol=0, atol=0)


def test_a_layer_in_training_mode_folds_to_what_it_is_in_eval_mode():
    ce, x = moved(CENorm(16)), batch()
    torch.testing.assert_close(fold(copy.deepcopy(ce).train())(x), ce(x))


def test_other_shapes_than_the_layer_s_are_named():
    folded, x = fold(CENorm(16)), torch.randn(3, 16, 4, 5)
    with pytest.raises(ValueError, match=r"FoldedCE\(16\) takes a map of shape \(N, 16, H, W\), got \(3, 1, 4, 5\)"):
        folded(x[:, :1])
    with pytest.raises(ValueError, match=r"FoldedCE\(16\) adds a residual"):
        folded(x, x[:1])


def test_the_model_stays_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), moved(CENorm(16))).train()
    ce, before = model[1], copy.deepcopy(model.state_dict())
    fold(model)(batch(channels=3))
    assert model[1] is ce
    assert all(module.training for module in [model[0], ce])
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize("branches", [("bd", "ir"), ("bd",), ("ir",), ()], ids=str)
def test_training_the_model_further_leaves_the_folded_one_as_it_is(branches):
    model = nn.Sequential(nn.Conv2d(3, 16, 1), moved(CENorm(16, branches=branches))).double()
    folded, x = fold(model), batch(channels=3).double()
    before = folded(x)
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            value.add_(1)
    assert torch.equal(folded(x), before)


def test_what_a_folded_layer_needs_is_in_its_state_and_none_of_it_is_trained():
    first, second, x = fold(moved(CENorm(16))), fold(moved(CENorm(16), seed=1)), batch()
    assert not list(first.parameters())
    first.load_state_dict(second.state_dict())
    assert torch.equal(first(x), second(x))


def test_a_layer_in_two_places_is_one_folded_layer_in_both():
    shared = moved(CENorm(16))
    folded = fold(nn.ModuleDict(dict(a=nn.Sequential(shared), b=nn.Sequential(shared))))
    assert isinstance(folded["a"][0], FoldedCE)
    assert folded["a"][0] is folded["b"][0]


def test_a_switchable_norm_outside_ce_is_folded_too():
    ce, x = moved(CENorm(16, norm=dict(type="SN"))), batch()
    model = nn.Sequential(ce.norm, ce, nn.Sequential(ce.norm))
    folded = fold(model)
    assert not any(isinstance(module, SwitchableNorm) for module in folded.modules())
    assert folded[0] is folded[2][0]
    assert relative_error(folded(x), model(x)) < 1e-5
    torch.testing.assert_close(copy.deepcopy(folded[0]).half()(x.half()), ce.norm(x.half()))
    program = torch.export.export(folded, (x,), dynamic_shapes=({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC},))
    called = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert {target.namespace for target in called if isinstance(target, torch._ops.OperatorBase)} == {"aten"}


def test_a_model_without_ce_is_copied_in_eval_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    folded = fold(model)
    assert model.training
    assert not folded.training
    assert folded[1] is not model[1]
    torch.testing.assert_close(dict(folded.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("norm", [*SAMPLE_NORMS[::4], dict(type="BN")], ids=str)
def test_export_sees_standard_operators_only_of_every_base_norm(norm):
    ce, sizes = moved(CENorm(16, norm=norm)), {0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC}
    program = torch.export.export(fold(ce), (batch(),), dynamic_shapes=(sizes,))
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert {target.namespace for target in targets if isinstance(target, torch._ops.OperatorBase)} == {"aten"}
    x = batch(2, 16, 7, 3)
    torch.testing.assert_close(program.module()(x), ce(x))


@pytest.mark.parametrize(
    "kwargs",
    [*(dict(branches=b) for b in [("bd", "ir"), ("bd",), ("ir",), ()]), *(dict(norm=norm) for norm in SAMPLE_NORMS)],
    ids=str,
)
def test_a_folded_layer_can_be_scripted(kwargs):
    ce = moved(CENorm(16, correction=1, **kwargs))
    scripted, x, residual = torch.jit.script(fold(ce)), batch(), batch(seed=2)
    torch.testing.assert_close(scripted(x), ce(x))
    for rectifier in (dict(rectifier=RELU), dict(rectifier=0.5)):
        torch.testing.assert_close(scripted(x, residual, **rectifier), ce(x, residual, **rectifier))
