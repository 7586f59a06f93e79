import copy

import pytest
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from mmpretrain.models.backbones import ResNet
from torch import nn

from ce_mm.backbones import CEResNet
from ce_mm.layers import CENorm

BLOCKS = {18: (2, 2, 2), 34: (3, 4, 6), 50: (3, 4, 6), 101: (3, 4, 23), 152: (3, 8, 36)}


def ce_places(model):
    return [name for name, module in model.named_modules() if isinstance(module, CENorm)]


@pytest.mark.parametrize("depth", BLOCKS)
def test_ce_follows_the_stem_and_the_last_norm_of_every_block_of_stages_1_to_3(depth):
    last = "bn2" if depth < 50 else "bn3"
    blocks = [f"layer{i + 1}.{j}.{last}" for i, count in enumerate(BLOCKS[depth]) for j in range(count)]
    assert ce_places(CEResNet(depth)) == ["bn1", *blocks]


@pytest.mark.parametrize("depth", [18, 50])
def test_the_shapes_are_those_of_the_plain_network(depth):
    x, indices = torch.randn(2, 3, 64, 64), (0, 1, 2, 3)
    for ours, plain in zip(CEResNet(depth, out_indices=indices)(x), ResNet(depth, out_indices=indices)(x), strict=True):
        assert ours.shape == plain.shape


def test_ce_stages_and_branches_choose_where_ce_stands():
    model = CEResNet(18, ce_stages=(False, True, False, True), ce_cfg=dict(group_size=8), ce_stem_cfg=dict(branches=()))
    assert [name.split(".")[0] for name in ce_places(model)] == ["bn1", "layer2", "layer2", "layer4", "layer4"]
    assert model.layer2[0].bn2.bd.group_size == 8
    assert model.bn1.bd is None


def test_the_authors_stem_is_one_group_of_64():
    model = CEResNet(50, ce_stem_cfg=dict(group_size=64))
    assert (model.bn1.bd.group_size, model.layer1[0].bn3.bd.group_size) == (64, 16)


def test_the_base_norm_is_the_network_s_own():
    model = CEResNet(18, norm_cfg=dict(type="SyncBN", requires_grad=False))
    assert isinstance(model.bn1.norm, nn.SyncBatchNorm)
    assert not model.layer1[0].bn2.norm.weight.requires_grad


def test_a_deep_stem_has_ce_after_its_last_norm():
    assert ce_places(CEResNet(18, deep_stem=True))[0] == "stem.2.bn"


def test_a_plain_checkpoint_leaves_only_ce_s_own_keys_missing(tmp_path):
    plain, model = ResNet(50), CEResNet(50)
    plain.init_weights()
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / "plain.pth")
    load_checkpoint(model, str(tmp_path / "plain.pth"))
    report = model.load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert all(".ir." in key or ".bd." in key or key.endswith(".mix") for key in report.missing_keys)
    assert torch.equal(model.layer1[0].bn3.norm.weight, plain.layer1[0].bn3.weight)


def test_without_branches_the_outputs_are_those_of_the_plain_network():
    plain, model = ResNet(18), CEResNet(18, ce_cfg=dict(branches=()))
    plain.init_weights()
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), plain(x))


def test_init_cfg_pretrained_loads_a_ce_checkpoint(tmp_path):
    source = CEResNet(18)
    source.init_weights()
    source.bn1.mix.data.fill_(1.5)
    torch.save(dict(state_dict=source.state_dict()), tmp_path / "ce.pth")
    model = CEResNet(18, init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "ce.pth")))
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_frozen_stages_are_frozen_with_their_ce():
    model = CEResNet(18, frozen_stages=1)
    model.train()
    assert not any(p.requires_grad for p in [*model.bn1.parameters(), *model.layer1.parameters()])
    assert all(p.requires_grad for p in model.layer2.parameters())
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 3, 32, 32))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith(("bn1", "layer1")) for name in changed)


def test_norm_eval_freezes_all_moving_averages_and_still_trains_the_parameters():
    model = CEResNet(18, norm_eval=True)
    model.train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.randn(2, 3, 32, 32))[0].square().sum().backward()
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_with_cp_gives_the_same_outputs_and_gradients():
    torch.manual_seed(0)
    model = CEResNet(18).double()
    model.init_weights()
    saving = CEResNet(18, with_cp=True).double()
    saving.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    results = []
    for net in (model, saving):
        y = net(x)[0]
        y.square().sum().backward()
        results.append([y, *(p.grad for p in net.parameters())])
    for plain, saved in zip(*results, strict=True):
        torch.testing.assert_close(plain, saved)


def test_the_last_gamma_of_a_block_starts_at_one_unless_the_user_insists():
    for insists in (False, True):
        model = CEResNet(18, zero_init_residual=insists)
        model.init_weights()
        assert torch.equal(model.layer1[0].bn2.weight, torch.full((64,), 0.0 if insists else 1.0))
        y = model(torch.randn(2, 3, 32, 32))[0]
        y.square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("registry", [MODELS, MMDET_MODELS], ids=["mmengine", "mmdet"])
def test_openmmlab_finds_it_by_its_plain_name(registry):
    assert isinstance(registry.build(dict(type="CEResNet", depth=18)), CEResNet)


@pytest.mark.parametrize("stages", [(True,), (True,) * 5], ids=len)
def test_ce_stages_speak_of_four_stages(stages):
    with pytest.raises(ValueError, match="ce_stages"):
        CEResNet(18, ce_stages=stages)
