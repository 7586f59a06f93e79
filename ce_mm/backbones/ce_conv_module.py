"""CE in mmcv's ConvModule, of which MobileNetV2, ShuffleNetV2, VGG and the deep stem of a ResNet are made."""
import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from ce_mm.layers import CENorm
from ce_mm.layers.onlookers import is_seen
from ce_mm.ops import RELU, RELU6

#: The rectifiers that CENorm can take into its last pass, by their exact classes.
RECTIFIERS = {nn.ReLU: RELU, nn.ReLU6: RELU6}


class CEConvModule(ConvModule):
    """ConvModule whose norm is CENorm, which takes a ReLU or ReLU6 behind it into its own last pass over the map."""

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        """As ConvModule's."""
        out = super().forward(x, activate=False, norm=False)
        rectifies = activate and self.with_activation
        rectifier = RECTIFIERS.get(type(self.activate)) if norm and rectifies else None
        if norm:
            out = self.norm(out, rectifier=rectifier, overwrite=unseen(self.conv, self.norm))
        return self.activate(out) if rectifies and rectifier is None else out


def unseen(convolution: nn.Module, ce: nn.Module) -> bool:
    """Whether nobody but the CE behind it has the convolution's result, where no gradient is wanted.

    A hook may have kept it; what else stands in the convolution's place may return what others have, as nn.Identity
    does, and what stands in CE's place may have hooks of its own around it.
    """
    return (
        not torch.is_grad_enabled()
        and not is_seen(convolution)
        and getattr(convolution.forward, "__func__", None) is nn.Conv2d.forward
        and isinstance(ce, CENorm)
    )


def equalize_conv_module(module: ConvModule, ce_cfg: dict) -> None:
    """Put CE into a ConvModule, in place of its norm and under its name.

    Args:
        module: what a library built, in mmcv's usual order convolution, norm, rectifier.
        ce_cfg: CENorm's arguments.

    Raises:
        ValueError: the module has no norm, or is of another class, which would lose its forward.
    """
    if type(module) is not ConvModule or not module.with_norm:
        raise ValueError(
            f"equalize_conv_module takes mmcv's ConvModule itself, with a norm, got {module!r}; give the ConvModule a "
            "norm_cfg, or put a CENorm into the module in place of its norm"
        )
    module.add_module(module.norm_name, CENorm(module.out_channels, **ce_cfg))
    module.__class__ = CEConvModule  # the convolution and the rectifier stay the library's
