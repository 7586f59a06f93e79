"""CE-MobileNetV2: a MobileNetV2 with CE after the norm of the 3×3 depthwise convolution of each inverted residual."""
from collections.abc import Sequence
from itertools import compress
from typing import Any

from mmpretrain.models.backbones import MobileNetV2

from ce_mm.backbones.arguments import ce_arguments, check_stages, norm_arguments
from ce_mm.backbones.ce_conv_module import equalize_conv_module
from ce_mm.backbones.norm_eval import NormEval


class CEMobileNetV2(NormEval, MobileNetV2):
    """MobileNetV2 with Channel Equilibrium.

    Args:
        widen_factor: width multiplier.
        ce_cfg: CENorm's arguments; its base norm is ``norm_cfg`` unless given here.
        ce_stages: which of the seven stages of inverted residuals, ``layer1`` to ``layer7``, have CE; all by default.
            The last two, of maps of stride 32, have two thirds of all weights of CE.
        norm_cfg: of the whole network; BN by default.
        kwargs: mmpretrain's MobileNetV2's; checkpoints of a plain MobileNetV2 work as there. The ReLU6 behind CE
            is computed in CE's last pass over the map.
    """

    def __init__(
        self,
        widen_factor: float = 1.0,
        ce_cfg: dict | None = None,
        ce_stages: Sequence[bool] = (True,) * 7,
        norm_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        check_stages(ce_stages, 7)
        norm_cfg = norm_arguments(norm_cfg)
        ce_cfg = ce_arguments(ce_cfg, dict(norm=norm_cfg))
        super().__init__(widen_factor, norm_cfg=norm_cfg, **kwargs)
        for stage in compress(self.layers, ce_stages):  # conv2, the last of the layers, is no stage
            for block in getattr(self, stage):
                depthwise = block.conv[-2]  # before it the expansion, which the first block has not; behind it one 1×1
                equalize_conv_module(depthwise, ce_cfg)
        self._freeze_stages()  # mmpretrain's waits for train(), which comes after DDP has looked
