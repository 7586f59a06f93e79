import copy

import pytest
import torch
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from torch import nn
from torch.fx import symbolic_trace
from torch.nn.modules.module import register_module_forward_hook
from torchvision.models.feature_extraction import create_feature_extractor

from ce_mm.backbones import CEResNet
from ce_mm.layers import CENorm


def test_ce_stages_and_branches_choose_where_ce_stands():
    model = CEResNet(18, ce_stages=(False, True, False, True), ce_cfg=dict(group_size=8), ce_stem_cfg=dict(branches=()))
    places = [name.split(".")[0] for name, module in model.named_modules() if isinstance(module, CENorm)]
    assert places == ["bn1", "layer2", "layer2", "layer4", "layer4"]
    assert model.layer2[0].bn2.bd.group_size == 8
    assert model.bn1.bd is None


def test_the_authors_stem_is_one_group_of_64():
    model = CEResNet(50, ce_stem_cfg=dict(group_size=64))
    assert (model.bn1.bd.group_size, model.layer1[0].bn3.bd.group_size) == (64, 16)


def test_the_last_gamma_of_a_block_starts_at_one_unless_the_user_insists():
    for insists in (False, True):
        model = CEResNet(18, zero_init_residual=insists)
        model.init_weights()
        assert torch.equal(model.layer1[0].bn2.weight, torch.full((64,), 0.0 if insists else 1.0))
        y = model(torch.randn(2, 3, 32, 32))[0]
        y.square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_frozen_stage_s_rectifiers_are_frozen_from_the_start():
    model = CEResNet(18, frozen_stages=1, act_cfg=dict(type="PReLU"))
    rectifiers = [(name, p) for name, p in model.named_parameters() if ".relu." in name]
    assert all(p.requires_grad != name.startswith("layer1.") for name, p in rectifiers)
    assert len(rectifiers) == 8


def test_a_ce_stem_cfg_of_anything_but_ce_s_arguments_is_named():
    with pytest.raises(ValueError, match=r"ce_stem_cfg must be a dict of CENorm's arguments, .*, got \{'size': 64\}"):
        CEResNet(18, ce_stem_cfg=dict(size=64))


@pytest.mark.parametrize("depth", [18, 50])
def test_inference_writes_over_no_map_that_a_hook_may_have_kept(depth):
    model = CEResNet(depth)
    model.eval()
    pictures, kept = torch.randn(2, 3, 64, 64), []
    expected = model(pictures)[-1]
    with torch.no_grad():
        torch.testing.assert_close(model(pictures)[-1], expected)
        for register in (hooks_on_convolutions, hooks_for_all_modules):
            handles = register(model, kept)
            torch.testing.assert_close(model(pictures)[-1], expected)
            for handle in handles:
                handle.remove()
            assert kept and all(torch.equal(output, copy) for output, copy in kept)
            kept.clear()


def hooks_on_convolutions(model, kept):
    def keep(module, inputs, output):
        kept.append((output, output.clone()))

    return [module.register_forward_hook(keep) for module in model.modules() if isinstance(module, nn.Conv2d)]


def hooks_for_all_modules(model, kept):
    def keep(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            kept.append((output, output.clone()))

    return [register_module_forward_hook(keep)]


def test_inference_writes_over_no_map_that_was_not_the_convolution_s():
    model, maps = CEResNet(18), torch.randn(2, 64, 16, 16)
    model.eval()
    model.conv1 = nn.Identity()
    before = maps.clone()
    with torch.no_grad():
        model(maps)
    assert torch.equal(maps, before)


@pytest.mark.parametrize("name", ["layer1.0.conv2", "layer2.1.bn2", "layer4.1"])
def test_a_feature_extractor_by_tracing_gives_the_maps_of_the_network(name):
    model, kept = CEResNet(18, drop_path_rate=0.1), []
    model.eval()
    pictures = torch.randn(2, 3, 64, 64)
    extractor = create_feature_extractor(model, [name])
    model.get_submodule(name).register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        model(pictures)
        torch.testing.assert_close(extractor(pictures)[name], kept[0])


def test_a_traced_network_trains_and_infers_as_the_network():
    model, pictures = CEResNet(18), torch.randn(2, 3, 64, 64)
    traced = symbolic_trace(copy.deepcopy(model))
    called = [traced.get_submodule(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    assert sum(isinstance(module, CENorm) for module in called) == 7
    for mode in (True, False):
        model.train(mode)
        traced.train(mode)
        torch.testing.assert_close(traced(pictures), model(pictures))


def test_efficient_conv_bn_eval_of_mmengine_leaves_the_results_as_they_are():
    model, pictures = CEResNet(18), torch.randn(2, 3, 64, 64)
    model(pictures)
    model.eval()
    expected = model(pictures)
    turn_on_efficient_conv_bn_eval(nn.ModuleDict(dict(backbone=model)), "backbone")
    torch.testing.assert_close(model(pictures), expected)
