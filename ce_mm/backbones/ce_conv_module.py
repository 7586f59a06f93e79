"""CE in mmcv's ConvModule, of which MobileNetV2, ShuffleNetV2, VGG and the deep stem of a ResNet are made."""
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from ce_mm.layers import CENorm


class CEConvModule(ConvModule):
    """ConvModule whose norm is CENorm, which takes a plain ReLU behind it into its own last pass over the map."""

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        """As ConvModule's."""
        # Exactly nn.ReLU: CENorm knows no other rectifier.
        if norm and activate and self.with_activation and type(self.activate) is nn.ReLU:
            return self.norm(super().forward(x, activate=False, norm=False), relu=True)
        return super().forward(x, activate, norm)


def equalize(module: ConvModule, ce_cfg: dict) -> None:
    """Put CE into a ConvModule, in place of its norm and under its name.

    Args:
        module: what a library built, in mmcv's usual order convolution, norm, rectifier.
        ce_cfg: CENorm's arguments.

    Raises:
        ValueError: the module has no norm, or is of another class, which would lose its forward.
    """
    if type(module) is not ConvModule or not module.with_norm:
        raise ValueError(
            f"equalize takes mmcv's ConvModule itself, with a norm, got {module!r}; give the ConvModule a norm_cfg, or "
            "put a CENorm into the module in place of its norm"
        )
    module.add_module(module.norm_name, CENorm(module.out_channels, **ce_cfg))
    module.__class__ = CEConvModule  # the convolution and the rectifier stay the library's
