"""Every rectified map is shown once, under the name of its place, wherever its rectifier stands."""
import pytest
import torch
from mmpretrain.models.backbones import ResNet, SEResNet
from torch import nn

from ce_mm.analysis.rectified import watching
from ce_mm.backbones import CEVGG, CEMobileNetV2, CEResNet
from ce_mm.layers import CENorm
from ce_mm.ops import RELU


def shown(model, *arguments, passes=1):
    maps = []
    with watching(model, lambda place, output: maps.append((place, output.detach().clone()))):
        for _ in range(passes):
            model(*arguments)
    return maps


def places(model, side=32, passes=1):
    return [place for place, _ in shown(model, torch.randn(2, 3, side, side), passes=passes)]


class Block(nn.Module):
    """CE with residual add and ReLU inside its last pass, or behind it."""

    def __init__(self, folded):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.relu, self.folded = CENorm(8), nn.ReLU(), folded

    def forward(self, x, residual):
        return self.norm(x, residual, RELU) if self.folded else self.relu(self.norm(x) + residual)


def test_a_rectifier_folded_into_ce_shows_the_map_that_one_of_its_own_shows():
    x, residual = torch.randn(2, 2, 8, 5, 5)
    [(folded, left)] = shown(Block(True), x, residual)
    [(separate, right)] = shown(Block(False), x, residual)
    assert (folded, separate) == ("norm", "relu")
    torch.testing.assert_close(left, right)
    assert (left == 0).any() and (left > 0).any()


def test_ce_that_does_not_rectify_is_no_place():
    assert shown(nn.Sequential(CENorm(8)), torch.randn(2, 8, 3, 3)) == []


@pytest.mark.parametrize("depth", [18, 50])
def test_a_resnet_has_the_stem_and_one_place_behind_each_norm_of_a_block_with_ce_and_without(depth):
    plain, ce = places(ResNet(depth)), places(CEResNet(depth))
    assert len(plain) == len(ce) == depth - 1
    fourth = "layer1.1.relu" if depth == 18 else "layer1.0.relu#3"
    assert plain[:4] == ["relu", "layer1.0.relu", "layer1.0.relu#2", fourth]
    assert ce[:3] == ["bn1", "layer1.0.relu", "layer1.0.bn2" if depth == 18 else "layer1.0.relu#2"]
    assert ce[-1] == plain[-1]  # no CE in the last stage


def test_other_rectifiers_and_backbones_are_seen():
    assert len(places(CEVGG(11, act_cfg=dict(type="ELU")))) == len(places(CEVGG(11))) == 8
    assert len(places(CEMobileNetV2())) == 35
    assert len(places(CEResNet(18, act_cfg=dict(type="LeakyReLU")))) == 17


def test_the_rectifier_in_squeeze_and_excitation_is_no_place():
    assert places(SEResNet(50)) == places(ResNet(50))


def test_calls_are_counted_anew_in_every_pass():
    assert places(nn.Sequential(relu := nn.ReLU(), relu), passes=2) == ["0", "0#2"] * 2


def test_calls_are_counted_anew_after_a_pass_that_failed():
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1))
    maps = []
    with watching(model, lambda place, output: maps.append(place)):
        with pytest.raises(RuntimeError):
            model(torch.randn(1, 4, 2, 2))
        model[0](torch.randn(1, 4, 2, 2))  # outside of a pass
        model(torch.randn(1, 3, 2, 2))
    assert maps == ["0", "0"]


def test_a_block_that_is_computed_again_for_the_backward_is_shown_once():
    model = CEResNet(18, with_cp=True)
    model.train()
    maps = []
    with watching(model, lambda place, output: maps.append(place)):
        model(torch.randn(2, 3, 32, 32, requires_grad=True))[-1].sum().backward()
    assert len(maps) == 17


def test_what_is_returned_takes_the_place_of_the_map():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten())
    with watching(model, lambda place, output: output + 1):
        assert model(torch.full((1, 1, 1, 1), 2.0)).item() == 3
    assert model(torch.full((1, 1, 1, 1), 2.0)).item() == 2


def test_maps_alone_are_shown():
    assert shown(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(2, 3)) == []


def test_afterwards_nothing_is_left_on_the_network():
    model = CEResNet(18)
    with pytest.raises(KeyError), watching(model, lambda *_: None):
        raise KeyError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
