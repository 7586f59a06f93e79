"""What holds for every backbone with CE, held against mmpretrain's own class."""
import copy
import re
from typing import NamedTuple

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from mmpretrain.models.backbones import VGG, MobileNetV2, ResNet, ShuffleNetV2
from torch import nn

from ce_mm.backbones import CEVGG, CEMobileNetV2, CEResNet, CEShuffleNetV2
from ce_mm.layers import CENorm, fold


class Member(NamedTuple):
    ce: type
    plain: type
    kwargs: dict = {}  # of both
    plain_kwargs: dict = {}
    indices: tuple = (0, 1, 2, 3)
    frozen: tuple = ()  # where frozen_stages=1 stops the gradients
    halted: tuple = ()  # and where the moving averages: mmpretrain leaves those of some stems moving


NARROW = dict(stem_channels=16, base_channels=16)
RESNET = ("conv1.", "bn1.", "layer1.")
FAMILY = {
    "resnet18": Member(CEResNet, ResNet, dict(depth=18, **NARROW), frozen=RESNET, halted=RESNET),
    "resnet50": Member(CEResNet, ResNet, dict(depth=50, **NARROW), frozen=RESNET, halted=RESNET),
    "resnet18-deep-stem": Member(
        CEResNet, ResNet, dict(depth=18, deep_stem=True, **NARROW), frozen=("stem.", "layer1."),
        halted=("stem.", "layer1."),
    ),
    "mobilenetv2": Member(
        CEMobileNetV2, MobileNetV2, dict(widen_factor=0.25), indices=tuple(range(8)), frozen=("conv1.", "layer1."),
        halted=("layer1.",),
    ),
    "shufflenetv2": Member(
        CEShuffleNetV2, ShuffleNetV2, dict(widen_factor=0.5), frozen=("conv1.", "layers.0."), halted=("layers.0.",)
    ),
    "vgg11": Member(
        CEVGG, VGG, dict(depth=11), dict(norm_cfg=dict(type="BN")), indices=(0, 1, 2, 3, 4), frozen=("features.0.",),
        halted=("features.0.",),
    ),
}  # fmt: skip
RECTIFIERS = {"ReLU": nn.ReLU, "LeakyReLU": nn.LeakyReLU, "ELU": nn.ELU}
CHOOSES = ["resnet18", "resnet50", "resnet18-deep-stem", "vgg11"]


@pytest.fixture(params=FAMILY)
def member(request):
    torch.manual_seed(0)
    return FAMILY[request.param]


def build(member, **kwargs):
    return member.ce(**member.kwargs | kwargs)


def build_plain(member, **kwargs):
    return member.plain(**member.kwargs | member.plain_kwargs | kwargs)


def pictures(dtype=torch.float32):
    return torch.randn(2, 3, 64, 64, dtype=dtype)


def ce_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, CENorm)}


def replace(model, name, module):
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def as_mmpretrain_runs_it(member, model, rectifier=None):
    """mmpretrain's network, and so its forward, with the norms, rectifiers and weights of one of ours."""
    plain = build_plain(member)
    for name, ce in ce_layers(model).items():
        replace(plain, name, copy.deepcopy(ce))
    for name, module in list(plain.named_modules()):
        if rectifier is not None and isinstance(module, nn.ReLU):
            replace(plain, name, rectifier())
    plain.load_state_dict(model.state_dict())
    plain.to(next(model.parameters()).dtype)
    plain.train(model.training)
    return plain


def same_step(ours, theirs):
    """Whether two networks give the same maps, gradients and buffers."""
    x = pictures(next(ours.parameters()).dtype)
    results = []
    for model in (ours, theirs):
        maps = model(x)
        sum(y.square().sum() for y in maps).backward()
        results.append([*maps, *(p.grad for p in model.parameters()), *model.buffers()])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)


def test_the_shapes_are_those_of_the_plain_network_at_every_output(member):
    x, outputs = pictures(), dict(out_indices=member.indices)
    for ours, plain in zip(build(member, **outputs)(x), build_plain(member, **outputs)(x), strict=True):
        assert ours.shape == plain.shape


def test_it_computes_what_mmpretrain_s_network_does_with_ce_for_the_norms(member):
    model = build(member).double()
    same_step(model, as_mmpretrain_runs_it(member, model))


@pytest.mark.parametrize("rectifier", RECTIFIERS)
@pytest.mark.parametrize("name", CHOOSES)
def test_the_rectifier_is_a_choice_at_every_place(name, rectifier):
    member, chosen = FAMILY[name], RECTIFIERS[rectifier]
    model = build(member, act_cfg=dict(type=rectifier)).double()
    places = [name for name, module in build_plain(member).named_modules() if isinstance(module, nn.ReLU)]
    rectifiers = [(n, type(module)) for n, module in model.named_modules() if type(module) in RECTIFIERS.values()]
    assert rectifiers == [(place, chosen) for place in places]
    same_step(model, as_mmpretrain_runs_it(member, model, chosen))


def test_a_plain_checkpoint_leaves_only_ce_s_own_keys_missing(member, tmp_path):
    plain, model = build_plain(member), build(member)
    plain.init_weights()
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / "plain.pth")
    load_checkpoint(model, str(tmp_path / "plain.pth"))
    report = model.load_state_dict(plain.state_dict(), strict=False)
    own = [f"{name}.{key}" for name, ce in ce_layers(model).items() for key in ce.state_dict() if key[:5] != "norm."]
    assert sorted(report.missing_keys) == sorted(own) != []
    assert not report.unexpected_keys
    for name, value in plain.state_dict().items():
        place, _, key = name.rpartition(".")
        assert torch.equal(model.state_dict()[f"{place}.norm.{key}" if place in ce_layers(model) else name], value)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_without_branches_the_outputs_are_exactly_those_of_the_plain_network(member, training):
    plain, model = build_plain(member), build(member, ce_cfg=dict(branches=()))
    plain.init_weights()
    model.load_state_dict(plain.state_dict())
    plain.train(training)
    model.train(training)
    x = pictures()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model(x), plain(x), strict=True))


def test_a_training_step_gives_finite_gradients_to_all_parameters(member):
    model = build(member)
    model.init_weights()
    model.train()
    model(pictures())[-1].square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name


def test_init_weights_leaves_ce_s_own_parameters_as_ce_starts_them(member):
    model = build(member)
    before = {name: copy.deepcopy(ce.state_dict()) for name, ce in ce_layers(model).items()}
    model.init_weights()
    for name, ce in ce_layers(model).items():
        for key, value in ce.state_dict().items():
            assert torch.equal(value, before[name][key]), f"{name}.{key}"
        assert torch.equal(ce.weight, torch.ones(ce.num_features))


def test_init_cfg_pretrained_loads_a_ce_checkpoint(member, tmp_path):
    source = build(member)
    for p in source.parameters():
        nn.init.normal_(p)
    torch.save(dict(state_dict=source.state_dict()), tmp_path / "ce.pth")
    model = build(member, init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "ce.pth")))
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_frozen_stages_are_frozen_with_their_ce(member):
    model = build(member, frozen_stages=1)
    learnt = {name for name, p in model.named_parameters() if p.requires_grad}  # here DistributedDataParallel looks
    model.train()
    before = copy.deepcopy(dict(model.named_buffers()))
    model(pictures())
    for name, p in model.named_parameters():
        assert (name in learnt) == p.requires_grad != name.startswith(member.frozen), name
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]) == name.startswith(member.halted), name


@pytest.mark.parametrize(
    "norm", [dict(type="BN"), dict(type="SyncBN"), dict(type="GN", num_groups=8), dict(type="SN")], ids=str
)
def test_norm_eval_freezes_all_moving_averages_and_still_trains_the_parameters(member, norm):
    model = build(member, norm_eval=True, norm_cfg=norm)
    assert model.train() is model
    before = copy.deepcopy(dict(model.named_buffers()))
    model(pictures())[-1].square().sum().backward()
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenetv2", "shufflenetv2"])
def test_with_cp_gives_the_same_outputs_and_gradients(name):
    torch.manual_seed(0)
    model, saving = build(FAMILY[name]).double(), build(FAMILY[name], with_cp=True).double()
    saving.load_state_dict(model.state_dict())
    x = pictures(torch.float64)
    for net in (model, saving):
        net(x)[-1].square().sum().backward()
    for plain, saved in zip(model.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(plain.grad, saved.grad)


def test_the_base_norm_is_the_network_s_own_unless_ce_cfg_names_another(member):
    def norms(**kwargs):
        return [ce.norm for ce in ce_layers(build(member, **kwargs)).values()]

    frozen_sync = norms(norm_cfg=dict(type="SyncBN", requires_grad=False))
    assert all(isinstance(norm, nn.SyncBatchNorm) and not norm.weight.requires_grad for norm in frozen_sync)
    other = norms(norm_cfg=dict(type="SyncBN"), ce_cfg=dict(norm=dict(type="BN", eps=1e-3), group_size=4))
    assert all(type(norm) is nn.BatchNorm2d and norm.eps == 1e-3 for norm in other)


def test_ce_cfg_reaches_every_place(member):
    layers = ce_layers(build(member, ce_cfg=dict(group_size=4, branches=("bd",)))).values()
    assert all((ce.bd.group_size, ce.ir) == (4, None) for ce in layers)


@pytest.mark.parametrize("ce_cfg", ["CE", 5, [1], dict(type="CE"), dict(grup_size=4), dict(num_features=8)], ids=str)
def test_a_ce_cfg_of_anything_but_ce_s_arguments_is_named(member, ce_cfg):
    got = re.escape(repr(ce_cfg))
    with pytest.raises(ValueError, match=rf"ce_cfg must be a dict of CENorm's arguments, norm, .*, got {got}"):
        build(member, ce_cfg=ce_cfg)


@pytest.mark.parametrize("stages", [(True,), (True,) * 8, (1, 1, 1, 2), True, None, "True", "yes!"], ids=str)
def test_ce_stages_that_do_not_speak_of_each_stage_are_named(member, stages):
    with pytest.raises(ValueError, match=rf"ce_stages must say True or False .*, got {re.escape(repr(stages))}"):
        build(member, ce_stages=stages)


@pytest.mark.parametrize("norm_cfg", ["BN", 5, {}, dict(type="Bn"), dict(type=None)], ids=str)
def test_a_norm_cfg_that_mmcv_does_not_know_is_named(member, norm_cfg):
    with pytest.raises(ValueError, match=rf"norm_cfg must be .*, got {re.escape(repr(norm_cfg))}; set for example"):
        build(member, norm_cfg=norm_cfg)


def test_deployment_and_fused_batch_norms_leave_the_outputs_as_they_are(member):
    model = build(member).double()
    model(pictures(torch.float64))
    model.eval()
    x = pictures(torch.float64)
    expected = model(x)
    for same in (fold(model), fuse_conv_bn(copy.deepcopy(model))):
        torch.testing.assert_close(same(x), expected)


@pytest.mark.parametrize("registry", [MODELS, MMDET_MODELS], ids=["mmengine", "mmdet"])
def test_openmmlab_finds_it_by_its_plain_name(member, registry):
    cfg = ConfigDict(type=member.ce.__name__, ce_cfg=dict(group_size=4), **member.kwargs)
    assert type(registry.build(cfg)) is member.ce
