"""What norms say by their parameters: each counted once, γ, β and λ as they were set."""
import pytest
import torch
from mmpretrain.models.backbones import ResNet
from torch import nn

from ce_mm.analysis.norms import affine_parameters, mixing_ratios, nonpositive_ratio, norm_layers
from ce_mm.backbones import CEResNet
from ce_mm.layers import CENorm, SwitchableNorm


def test_a_network_has_the_same_norms_with_ce_and_without():
    plain, ce = norm_layers(ResNet(18)), norm_layers(CEResNet(18))
    assert list(plain) == list(ce) and len(ce) == 20
    assert list(ce)[:3] == ["bn1", "layer1.0.bn1", "layer1.0.bn2"]
    assert isinstance(ce["layer1.0.bn2"], CENorm)


@pytest.mark.parametrize(
    "norm",
    [dict(type="BN"), dict(type="GN", num_groups=2), dict(type="LN"), dict(type="IN", affine=True), dict(type="SN")],
)
def test_gamma_and_beta_of_every_base_norm_are_found(norm):
    layer = CENorm(4, norm=norm)
    layer.norm.weight.data.copy_(torch.tensor([0.0, -0.005, 0.01, 1.0]))
    layer.norm.bias.data.copy_(torch.tensor([0.0, -1.0, 1.0, 2.0]))
    [(name, (gamma, beta))] = affine_parameters(nn.Sequential(layer)).items()
    assert name == "0"
    assert gamma.tolist() == pytest.approx([0, -0.005, 0.01, 1])
    assert nonpositive_ratio(beta) == 0.5


def test_norms_without_parameters_and_norms_of_vectors_inside_ce_are_left_out():
    without = nn.InstanceNorm2d(4), nn.BatchNorm2d(4, affine=False)
    model = nn.Sequential(without[0], SwitchableNorm(4), CENorm(4, branches=("ir",)), without[1])
    assert list(norm_layers(model)) == ["0", "1", "2", "3"]
    assert list(affine_parameters(model)) == ["1", "2"]


def test_lambda_is_the_sigmoid_of_mix_where_both_branches_are():
    model = nn.Sequential(CENorm(8), CENorm(8, branches=("bd",)), CENorm(8), nn.BatchNorm2d(8))
    model[2].mix.data.fill_(torch.tensor(3.0).log())
    assert mixing_ratios(model) == pytest.approx({"0": 0.5, "2": 0.75})
    assert mixing_ratios(nn.Sequential(nn.BatchNorm2d(8))) == {}
