import pytest
from mmpretrain.models.backbones import MobileNetV2
from torch import nn

from ce_mm.backbones import CEMobileNetV2
from ce_mm.layers import CENorm


@pytest.mark.parametrize("widen_factor", [0.1, 0.35, 0.5, 0.75, 1.0, 1.4])
def test_every_width_has_ce_as_wide_as_its_depthwise_convolutions(widen_factor):
    model = CEMobileNetV2(widen_factor)
    widths = [conv.out_channels for conv in MobileNetV2(widen_factor).modules() if getattr(conv, "groups", 1) > 1]
    assert [module.num_features for module in model.modules() if isinstance(module, CENorm)] == widths[::2]


def test_every_relu6_stays_where_it_was():
    def relu6(model):
        return [name for name, module in model.named_modules() if isinstance(module, nn.ReLU6)]

    assert relu6(CEMobileNetV2()) == relu6(MobileNetV2()) != []
