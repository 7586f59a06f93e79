"""CE in the place of batch norms of models that other packages built."""
import copy
import io

import pytest
import torch
import torchvision
from torch import nn
from torch.fx import symbolic_trace
from torchvision.ops import FrozenBatchNorm2d

from ce_mm.layers import CENorm, FoldedCE, SwitchableNorm, equalize, fold

RESNET = ["bn1", "layer[123].*.bn3"]
OF_RESNET50 = ["bn1", *(f"layer{stage}.{i}.bn3" for stage, blocks in [(1, 3), (2, 4), (3, 6)] for i in range(blocks))]


def pictures():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def train_a_step(model):
    model.train()
    model(pictures()).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    model.zero_grad()


@pytest.fixture(scope="module")
def plain():
    """A ResNet-50 whose weights and buffers are not at their start; tests copy it."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(num_classes=5)
    train_a_step(model)
    return model


@pytest.fixture
def resnet(plain):
    model = copy.deepcopy(plain)
    equalize(model, RESNET)
    return model


def small():
    """Its norms are '1' and '4'."""
    layers = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.Conv2d(32, 24, 1), nn.BatchNorm2d(24)
    return nn.Sequential(*layers)


def with_others():
    """Behind the norms of :func:`small` those that CE cannot stand on."""
    class Rectified(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    untracked = nn.BatchNorm2d(24, track_running_stats=False)
    others = [nn.BatchNorm1d(24), nn.BatchNorm3d(24), untracked, Rectified(24), FrozenBatchNorm2d(24)]
    return nn.Sequential(*small(), *others)


def places(model):
    return [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, CENorm)]



def test_a_resnet50_has_ce_at_the_stem_and_at_the_last_norm_of_each_block_of_three_stages(resnet):
    assert places(resnet) == OF_RESNET50


def test_a_mobilenet_v2_has_ce_at_the_norm_of_each_depthwise_convolution():
    model = torchvision.models.mobilenet_v2(num_classes=5)
    depthwise = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    equalize(model, ["features.1.conv.0.1", "features.*.conv.1.1"])
    assert len(depthwise) == 17
    assert places(model) == [name.removesuffix("0") + "1" for name in depthwise]
    train_a_step(model)
    torch.testing.assert_close(fold(model)(pictures()), model.eval()(pictures()), rtol=1e-4, atol=1e-5)


def test_a_shufflenet_v2_has_ce_at_the_last_norm_of_each_branch2():
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=5)
    equalize(model, "stage*.branch2.6")
    assert len(places(model)) == 16
    train_a_step(model)


def test_a_resnet50_of_timm_is_equalized_as_torchvision_s_is():
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet50", num_classes=5, zero_init_last=False)
    equalize(model, RESNET)
    assert places(model) == OF_RESNET50
    train_a_step(model)
    torch.testing.assert_close(fold(model)(pictures()), model.eval()(pictures()), rtol=1e-4, atol=1e-5)


def test_timm_s_norms_with_an_activation_inside_are_refused():
    norms = pytest.importorskip("timm.layers")
    with pytest.raises(ValueError, match=r"chooses: BatchNormAct2d computes something else than BatchNorm2d \(at 0\)$"):
        equalize(nn.Sequential(norms.BatchNormAct2d(8)), "*")


def test_weights_and_buffers_are_kept_bit_by_bit(plain, resnet):
    kept = resnet.state_dict()
    for name, value in plain.state_dict().items():
        place, _, key = name.rpartition(".")
        assert torch.equal(kept[f"{place}.norm.{key}" if place in OF_RESNET50 else name], value)


def test_the_model_is_the_one_that_is_made_by_hand(plain):
    by_hand, equalized = copy.deepcopy(plain), copy.deepcopy(plain)
    torch.manual_seed(2)
    for name in OF_RESNET50:
        norm = by_hand.get_submodule(name)
        ce = CENorm(norm.num_features, group_size=8)
        ce.load_state_dict(norm.state_dict(), strict=False)
        by_hand.set_submodule(name, ce)
    torch.manual_seed(2)
    equalize(equalized, RESNET, group_size=8)
    for _ in range(2):
        train_a_step(by_hand)
        train_a_step(equalized)
    torch.testing.assert_close(dict(equalized.state_dict()), dict(by_hand.state_dict()), rtol=0, atol=0)
    assert torch.equal(equalized(pictures()), by_hand(pictures()))


def test_a_train_step_moves_all_that_is_ce_s(resnet):
    before = copy.deepcopy(resnet.state_dict())
    train_a_step(resnet)
    own = [name for name in before if ".bd." in name or ".ir." in name or name.endswith(".mix")]
    assert len(own) == 7 * len(OF_RESNET50)
    after = resnet.state_dict()
    assert not [name for name in own if torch.equal(after[name], before[name])]
    assert all(value.isfinite().all() for value in after.values())


def test_a_state_dict_of_the_plain_model_loads_and_lacks_only_what_is_ce_s(plain):
    model = torchvision.models.resnet50(num_classes=5)
    equalize(model, RESNET)
    report = model.load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert set(report.missing_keys) == {
        f"{name}.{own}"
        for name in OF_RESNET50
        for own in ["mix", "bd.running_whitening", "ir.running_inv_std_scale", "ir.fc1.weight", "ir.fc2.weight",
                    "ir.ln.weight", "ir.ln.bias"]
    }  # fmt: skip
    for name in OF_RESNET50:
        theirs = plain.get_submodule(name).state_dict()
        torch.testing.assert_close(dict(model.get_submodule(name).norm.state_dict()), dict(theirs), rtol=0, atol=0)


def test_its_own_state_dict_goes_through_a_file(resnet):
    file = io.BytesIO()
    torch.save(resnet.state_dict(), file)
    file.seek(0)
    model = torchvision.models.resnet50(num_classes=5)
    equalize(model, RESNET)
    model.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(model(pictures()), resnet(pictures()))


def test_it_folds(resnet):
    train_a_step(resnet)
    folded = fold(resnet)
    assert [name for name, module in folded.named_modules() if isinstance(module, FoldedCE)] == OF_RESNET50
    torch.testing.assert_close(folded(pictures()), resnet.eval()(pictures()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", [copy.deepcopy, symbolic_trace])
def test_copies_and_traces_compute_the_same_in_both_modes(resnet, to):
    other = to(resnet)
    for mode in (True, False, True):
        assert torch.equal(other.train(mode)(pictures()), resnet.train(mode)(pictures()))


def test_eval_mode_moves_no_buffer(resnet):
    before = copy.deepcopy(resnet.state_dict())
    resnet.eval()(pictures())
    torch.testing.assert_close(dict(resnet.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ("1", ["1"]),
        ("[14]", ["1", "4"]),
        ("*", ["1", "4"]),
        (["4", "1"], ["1", "4"]),
        (nn.BatchNorm2d, ["1", "4"]),
        (lambda name, norm: norm.num_features == 24, ["4"]),
        (["1", lambda name, norm: name == "4"], ["1", "4"]),
    ],
)
def test_norms_are_chosen_by_names_a_class_or_a_function(where, chosen):
    model = small()
    norms = {name: model.get_submodule(name) for name in chosen}
    report = equalize(model, where, group_size=4)
    assert places(model) == list(report.layers) == chosen
    for name, norm in norms.items():
        assert model.get_submodule(name) is report.layers[name]
        assert report.layers[name].norm is norm
        assert report.layers[name].bd.group_size == 4


def test_the_report_is_a_line_for_each_norm():
    assert str(equalize(small(), "*")) == "1  32 channels in groups of 16\n4  24 channels in groups of 8"
    assert str(equalize(small(), "4", branches=("ir",))) == "4  24 channels"


def test_everywhere_passes_over_what_ce_cannot_stand_on_and_says_so():
    model = with_others()
    report = equalize(model, "*")
    assert places(model) == ["1", "4"]
    assert str(report).splitlines()[2:] == [
        "5  left as it was: BatchNorm1d does not take maps (N, C, H, W)",
        "6  left as it was: BatchNorm3d does not take maps (N, C, H, W)",
        "7  left as it was: BatchNorm2d has no running statistics",
        "8  left as it was: Rectified computes something else than BatchNorm2d",
        "9  left as it was: FrozenBatchNorm2d computes something else than BatchNorm2d",
    ]


def _none(name, norm):
    return False


@pytest.mark.parametrize(
    ("where", "arguments", "error", "says"),
    [
        ("bn*", {}, ValueError, r"got 'bn\*', which chooses none: its batch norms are 1, 4, 5, 6, 7, 8, 9$"),
        (["1", "bn"], {}, ValueError, "got 'bn', which chooses none"),
        ([], {}, TypeError, r"or a list of these, got \[\]"),
        (3, {}, TypeError, "where must be a pattern of names, .* got 3"),
        (nn.Conv2d, {}, ValueError, "which chooses none"),
        (_none, {}, ValueError, "which chooses none"),
        ("[1-6]", {}, ValueError, r"'\[1-6\]' chooses: BatchNorm1d does .* \(at 5\); BatchNorm3d does .* \(at 6\)$"),
        (["1", "7"], {}, ValueError, r"chooses: BatchNorm2d has no running statistics \(at 7\)$"),
        ("*", dict(group_size=0), ValueError, "group_size must be a whole number of at least 1, got 0"),
        ("*", dict(reduction=25), ValueError, "number of channels, 24, got 25"),
        ("*", dict(groups=4), TypeError, "groups"),
        ("*", dict(norm=dict(type="GN")), TypeError, "leave norm out"),
    ],
)
def test_an_error_says_what_to_mend_and_leaves_the_model_as_it_was(where, arguments, error, says):
    model = with_others()
    before = list(model.named_modules())
    with pytest.raises(error, match=says):
        equalize(model, where, **arguments)
    assert list(model.named_modules()) == before


def test_an_error_lists_the_first_norms_of_many(plain):
    with pytest.raises(ValueError, match=r"are bn1, layer1.0.bn1, .*, layer1.1.bn3 and 45 more$"):
        equalize(plain, "norm*")


def test_an_error_gives_a_reason_once_for_all_norms_that_have_it():
    model = torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d)
    with pytest.raises(ValueError, match=r"FrozenBatchNorm2d computes [^;]* \(at layer1.0.bn2, layer1.1.bn2, [^;]*\)$"):
        equalize(model, "*.bn2")


def test_norms_in_ce_are_not_chosen_again():
    model = small()
    equalize(model, "1")
    assert list(equalize(model, "*").layers) == ["4"]
    with pytest.raises(ValueError, match="it has none outside of a CENorm"):
        equalize(model, "*")
    with pytest.raises(ValueError, match="it has none outside of a CENorm"):
        equalize(model[1], "*")


def test_a_norm_in_two_places_is_one_layer_in_both():
    model = nn.ModuleDict(dict(a=small(), b=small()))
    model["b"][1] = model["a"][1]
    report = equalize(model, "?.1")
    assert places(model) == list(report.layers) == ["a.1", "b.1"]
    assert model["a"][1] is model["b"][1]


def test_a_norm_in_two_places_may_have_ce_in_one_of_them():
    model = nn.ModuleDict(dict(a=small(), b=small()))
    shared = model["b"][1] = model["a"][1]
    equalize(model, "a.1")
    assert model["b"][1] is model["a"][1].norm is shared
    assert list(equalize(model, "b.1").layers) == ["b.1"]


def test_a_block_in_two_places_stays_one():
    block = small()
    model = nn.ModuleDict(dict(a=block, b=block))
    assert list(equalize(model, "?.1").layers) == ["a.1", "b.1"]
    assert isinstance(block[1].norm, nn.BatchNorm2d)


def test_mode_type_device_and_what_is_not_trained_stay():
    model = small().double().to("meta")
    model[1].eval().requires_grad_(False)
    equalize(model, "*")
    assert [module.training for module in model] == [True, False, True, True, True]
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}
    assert {value.dtype for value in [*model.parameters(), *model[1].bd.buffers()]} == {torch.float64}
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["1.norm.weight", "1.norm.bias"]


def test_a_norm_whose_weights_are_of_another_type_than_its_buffers_keeps_both():
    model = small()
    model[1].weight.data = model[1].weight.data.half()
    equalize(model, "1")
    assert model[1].norm.weight.dtype == torch.float16
    assert model[1].norm.running_mean.dtype == model[1].mix.dtype == torch.float32


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm(8), nn.BatchNorm2d(8, affine=False), SwitchableNorm(8)], ids=repr)
def test_other_norms_of_batches_carry_ce_too(norm):
    model = nn.Sequential(copy.deepcopy(norm))
    equalize(model, "*")
    assert model(torch.randn(2, 8, 4, 4)).isfinite().all()
    assert type(model[0].norm) is type(norm)
