import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from ce_mm.backbones import equalize_conv_module
from ce_mm.layers import CENorm


def equalized(**kwargs):
    """A ConvModule with CE, and the same one as mmcv's own class runs it."""
    torch.manual_seed(0)
    module = ConvModule(4, 16, 3, padding=1, **dict(norm_cfg=dict(type="BN")) | kwargs).double()
    equalize_conv_module(module, dict(group_size=4))
    plain = copy.deepcopy(module.double())
    plain.__class__ = ConvModule
    return module, plain, torch.randn(2, 4, 5, 6, dtype=torch.float64)


@pytest.mark.parametrize("act", ["ReLU", "ReLU6", "LeakyReLU", "ELU", None])
def test_relu_and_relu6_are_taken_into_ce_and_the_output_stays(act):
    module, plain, x = equalized(act_cfg=None if act is None else dict(type=act))
    called = []
    if act is not None:
        module.activate.register_forward_hook(lambda *_: called.append(act))
    torch.testing.assert_close(module(x), plain(x))
    assert called == ([] if act in ("ReLU", "ReLU6", None) else [act])


class Around(nn.Module):
    """What a wrapper puts around CE."""

    def __init__(self, ce):
        super().__init__()
        self.ce = ce

    def forward(self, *args, **kwargs):
        return self.ce(*args, **kwargs)


def test_inference_writes_over_no_map_that_a_hook_around_ce_may_have_kept():
    module, plain, x = equalized()
    module.norm_name = "around"
    module.around, kept = Around(module.bn), []
    module.around.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(x), plain.eval()(x))
        assert torch.equal(kept[0], module.conv(x))


@pytest.mark.parametrize("parts", [dict(activate=False), dict(norm=False), dict(activate=False, norm=False)], ids=str)
def test_parts_are_left_out_as_in_mmcv(parts):
    module, plain, x = equalized()
    torch.testing.assert_close(module(x, **parts), plain(x, **parts))


def test_the_convolution_and_the_name_of_the_norm_stay():
    plain = ConvModule(4, 16, 3, norm_cfg=dict(type="GN", num_groups=4))
    module = copy.deepcopy(plain)
    equalize_conv_module(module, dict(norm=dict(type="BN")))
    assert isinstance(module, ConvModule)
    assert isinstance(module.gn, CENorm) and module.norm is module.gn
    assert torch.equal(module.conv.weight, plain.conv.weight)


class Scaled(ConvModule):
    """A ConvModule with a forward of its own."""


@pytest.mark.parametrize(
    "module",
    [ConvModule(4, 16, 3), Scaled(4, 16, 3, norm_cfg=dict(type="BN")), nn.Conv2d(4, 16, 3)],
    ids=["without-norm", "subclass", "another"],
)
def test_what_is_no_plain_conv_module_with_a_norm_is_named(module):
    with pytest.raises(ValueError) as error:
        equalize_conv_module(module, dict())
    assert repr(module) in str(error.value) and "norm_cfg" in str(error.value)
    assert type(module) in (ConvModule, Scaled, nn.Conv2d)
