"""CE-MobileNetV2: a MobileNetV2 with CE after the norm of the 3×3 depthwise convolution of each inverted residual."""
from typing import Any

from mmpretrain.models.backbones import MobileNetV2
from mmpretrain.models.backbones.mobilenet_v2 import InvertedResidual

from ce_mm.backbones.arguments import ce_arguments, norm_arguments
from ce_mm.backbones.ce_conv_module import equalize_conv_module
from ce_mm.backbones.norm_eval import NormEval


class CEMobileNetV2(NormEval, MobileNetV2):
    """MobileNetV2 with Channel Equilibrium.

    Args:
        widen_factor: width multiplier.
        ce_cfg: CENorm's arguments; its base norm is ``norm_cfg`` unless given here.
        norm_cfg: of the whole network; BN by default.
        kwargs: mmpretrain's MobileNetV2's; checkpoints of a plain MobileNetV2 work as there. The ReLU6 behind CE
            is computed in CE's last pass over the map.
    """

    def __init__(
        self, widen_factor: float = 1.0, ce_cfg: dict | None = None, norm_cfg: dict | None = None, **kwargs: Any
    ) -> None:
        norm_cfg = norm_arguments(norm_cfg)
        ce_cfg = dict(norm=norm_cfg) | ce_arguments(ce_cfg)
        super().__init__(widen_factor, norm_cfg=norm_cfg, **kwargs)
        for block in [module for module in self.modules() if isinstance(module, InvertedResidual)]:
            depthwise = block.conv[-2]  # before it stands the expansion, which the first block has not; behind, one 1×1
            equalize_conv_module(depthwise, ce_cfg)
        self._freeze_stages()  # mmpretrain's waits for train(), which comes after DDP has looked
