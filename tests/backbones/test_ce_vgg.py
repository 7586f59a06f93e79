import pytest
import torch
from mmpretrain.models.backbones import VGG
from torch import nn

from ce_mm.backbones import CEVGG
from ce_mm.layers import CENorm


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_every_depth_has_ce_at_every_convolution(depth):
    with torch.device("meta"):
        layers = [type(module) for module in CEVGG(depth).modules()]
    assert layers.count(CENorm) == layers.count(nn.Conv2d) == depth - 3


def test_pictures_of_cifar_10_end_as_one_position_of_512_channels():
    assert CEVGG(16)(torch.randn(2, 3, 32, 32))[0].shape == (2, 512, 1, 1)


def test_the_classifier_has_the_same_rectifier():
    with torch.device("meta"):
        model = CEVGG(11, num_classes=3, act_cfg=dict(type="ELU"))
    layers = [type(layer) for layer in model.classifier]
    assert layers == [nn.Linear, nn.ELU, nn.Dropout, nn.Linear, nn.ELU, nn.Dropout, nn.Linear]


def test_the_classifier_starts_as_vgg_s_and_ce_s_linear_layers_do_not():
    for network in (VGG, CEVGG):
        with torch.device("meta"):
            model = network(11, num_classes=3, norm_cfg=dict(type="BN"))
        model.classifier = nn.Sequential(nn.Linear(500, 40))  # as large as is needed for its spread
        model.features.to_empty(device="cpu")
        torch.manual_seed(0)
        model.init_weights()
        assert 0.0095 < model.classifier[0].weight.std() < 0.0105
        assert torch.equal(model.classifier[0].bias, torch.zeros(40))
