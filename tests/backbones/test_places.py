"""Where CE stands, by the paths of the modules."""
import pytest

from ce_mm.backbones import CEVGG, CEMobileNetV2, CEResNet, CEShuffleNetV2
from ce_mm.layers import CENorm

RESNET_BLOCKS = {18: (2, 2, 2), 34: (3, 4, 6), 50: (3, 4, 6), 101: (3, 4, 23), 152: (3, 8, 36)}


def ce_places(model):
    return [name for name, module in model.named_modules() if isinstance(module, CENorm)]


@pytest.mark.parametrize("depth", RESNET_BLOCKS)
def test_resnet_after_the_stem_and_the_last_norm_of_every_block_of_stages_1_to_3(depth):
    last = "bn2" if depth < 50 else "bn3"
    blocks = [f"layer{i + 1}.{j}.{last}" for i, count in enumerate(RESNET_BLOCKS[depth]) for j in range(count)]
    assert ce_places(CEResNet(depth)) == ["bn1", *blocks]


def test_resnet_with_a_deep_stem_after_the_last_norm_of_the_stem():
    assert ce_places(CEResNet(18, deep_stem=True))[:2] == ["stem.2.bn", "layer1.0.bn2"]


def test_mobilenetv2_at_the_depthwise_convolution_of_each_inverted_residual():
    assert ce_places(CEMobileNetV2()) == [
        "layer1.0.conv.0.bn",  # no expansion in front
        "layer2.0.conv.1.bn", "layer2.1.conv.1.bn",
        "layer3.0.conv.1.bn", "layer3.1.conv.1.bn", "layer3.2.conv.1.bn",
        "layer4.0.conv.1.bn", "layer4.1.conv.1.bn", "layer4.2.conv.1.bn", "layer4.3.conv.1.bn",
        "layer5.0.conv.1.bn", "layer5.1.conv.1.bn", "layer5.2.conv.1.bn",
        "layer6.0.conv.1.bn", "layer6.1.conv.1.bn", "layer6.2.conv.1.bn",
        "layer7.0.conv.1.bn",
    ]  # fmt: skip


def test_shufflenetv2_at_the_last_convolution_of_branch2_in_each_unit():
    assert ce_places(CEShuffleNetV2()) == [
        "layers.0.0.branch2.2.bn", "layers.0.1.branch2.2.bn", "layers.0.2.branch2.2.bn", "layers.0.3.branch2.2.bn",
        "layers.1.0.branch2.2.bn", "layers.1.1.branch2.2.bn", "layers.1.2.branch2.2.bn", "layers.1.3.branch2.2.bn",
        "layers.1.4.branch2.2.bn", "layers.1.5.branch2.2.bn", "layers.1.6.branch2.2.bn", "layers.1.7.branch2.2.bn",
        "layers.2.0.branch2.2.bn", "layers.2.1.branch2.2.bn", "layers.2.2.branch2.2.bn", "layers.2.3.branch2.2.bn",
    ]  # fmt: skip


def test_vgg16_after_the_norm_of_every_convolution():
    assert ce_places(CEVGG(16)) == [
        "features.0.bn", "features.1.bn",  # features.2 pools
        "features.3.bn", "features.4.bn",
        "features.6.bn", "features.7.bn", "features.8.bn",
        "features.10.bn", "features.11.bn", "features.12.bn",
        "features.14.bn", "features.15.bn", "features.16.bn",
    ]  # fmt: skip


def stages_of(model):
    """The stages in which CE stands, by the first part of the path."""
    return {name.split(".")[0] for name in ce_places(model)}


def test_mobilenetv2_in_the_chosen_stages_alone():
    assert stages_of(CEMobileNetV2(ce_stages=(True,) * 5 + (False,) * 2)) == {f"layer{stage}" for stage in range(1, 6)}
    assert stages_of(CEMobileNetV2(ce_stages=(False,) * 6 + (True,))) == {"layer7"}
    assert ce_places(CEMobileNetV2(ce_stages=(False,) * 7)) == []


def test_shufflenetv2_in_the_chosen_stages_alone():
    every = ce_places(CEShuffleNetV2())
    assert ce_places(CEShuffleNetV2(ce_stages=(True, True, False))) == every[:12]
    assert ce_places(CEShuffleNetV2(ce_stages=[False, True, False])) == every[4:12]


def test_vgg16_in_the_chosen_stages_alone():
    every = ce_places(CEVGG(16))
    assert ce_places(CEVGG(16, ce_stages=(True,) * 4 + (False,))) == every[:10]
    assert ce_places(CEVGG(16, ce_stages=(False, True, False, True, False))) == every[2:4] + every[7:10]
