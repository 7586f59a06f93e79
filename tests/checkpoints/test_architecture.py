"""The config of a backbone is told from the names and shapes of its weights."""
import pytest
import torch
from mmengine.registry import MODELS

from ce_mm.checkpoints.architecture import describe
from ce_mm.checkpoints.reading import CheckpointError

THIN = dict(type="CEResNet", depth=18, stem_channels=8, base_channels=8)


@pytest.mark.parametrize(
    "config",
    [
        dict(type="CEResNet", depth=18, stem_channels=32, base_channels=32),  # the demo's
        dict(THIN, depth=34),
        dict(THIN, depth=50),
        dict(THIN, depth=101),
        dict(THIN, depth=152),
        dict(THIN, in_channels=1, deep_stem=True, avg_down=True),
        dict(THIN, ce_stages=(True, False, True, True)),
        dict(THIN, ce_stages=(False, False, False, False)),
        dict(THIN, ce_cfg=dict(branches=("bd",))),
        dict(THIN, ce_cfg=dict(branches=("ir",))),
        dict(THIN, ce_cfg=dict(branches=())),
        dict(THIN, ce_cfg=dict(group_size=4, reduction=2)),
        dict(THIN, stem_channels=32, ce_stem_cfg=dict(group_size=32, reduction=8)),
        dict(type="CEMobileNetV2"),
        dict(type="CEMobileNetV2", widen_factor=0.35),
        dict(type="CEMobileNetV2", widen_factor=0.35, ce_stages=(False, True, True, True, True, False, False)),
        dict(
            type="CEResNet", depth=18, base_channels=8, norm_cfg=dict(type="GN", num_groups=2),
            ce_stem_cfg=dict(group_size=64),
        ),
        dict(type="CEShuffleNetV2", widen_factor=0.5),
        dict(type="CEShuffleNetV2", ce_cfg=dict(branches=("bd",))),
        dict(type="CEShuffleNetV2", widen_factor=0.5, ce_stages=(True, False, False)),
        dict(type="CEVGG", depth=13),
        dict(type="CEVGG", depth=16, ce_stages=(False, True, False, True, False)),
    ],
    ids=str,
)  # fmt: skip
def test_a_backbone_is_recognised(config):
    told = {name: value for name, value in config.items() if name != "norm_cfg"}
    assert describe(MODELS.build(config).state_dict()) == told


def changed(**changes):
    weights = MODELS.build(THIN).state_dict()
    for name, value in changes.items():
        name = name.replace("__", ".")
        weights.pop(name) if value is None else weights.update({name: value})
    return weights


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "not the weights .* first name is None"),
        ({"fc.weight": torch.zeros(1)}, "first name is 'fc.weight'"),
        (changed(**{"layer4__2__conv1__weight": torch.zeros(1)}), "no ResNet has 2, 2, 2, 3 basic blocks"),
        (changed(conv1__weight=None), "conv1.weight is missing"),
        (changed(conv1__weight=torch.zeros(3)), r"conv1.weight has the shape \(3,\); expected 4 dimensions"),
        (changed(**{"layer1__0__bn2__bd__running_whitening": torch.zeros(1, 8)}), "expected 3 dimensions"),
        ({f"layers.0.0.branch2.{n}.conv.weight": torch.zeros(9, 1, 1, 1) for n in (0, 2)}, "no ShuffleNetV2 has 18"),
        ({"features.0.conv.weight": torch.zeros(1)}, "no VGG has 1 convolutions"),
        ({f"features.{place}.conv.weight": torch.zeros(1) for place in range(8)}, "this VGG has no batch norm"),
    ],
    ids=range(9),
)  # fmt: skip
def test_weights_of_no_such_backbone_are_refused(weights, message):
    with pytest.raises(CheckpointError, match=message):
        describe(weights)
