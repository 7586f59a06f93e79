"""CE-ShuffleNetV2: a ShuffleNetV2 with CE after the norm of the last 1×1 convolution of branch2 in each unit.

That is the place in front of the unit's last ReLU (paper figure 6), which CE takes into its own last pass over the map.
"""
from collections.abc import Sequence
from itertools import compress
from typing import Any

from mmpretrain.models.backbones import ShuffleNetV2

from ce_mm.backbones.arguments import ce_arguments, check_stages, norm_arguments
from ce_mm.backbones.ce_conv_module import equalize_conv_module
from ce_mm.backbones.norm_eval import NormEval


class CEShuffleNetV2(NormEval, ShuffleNetV2):
    """ShuffleNetV2 with Channel Equilibrium.

    Args:
        widen_factor: width multiplier, 0.5, 1.0, 1.5 or 2.0.
        ce_cfg: CENorm's arguments; its base norm is ``norm_cfg`` unless given here.
        ce_stages: which of the three stages of units have CE; all by default. The last, of maps of stride 32, has two
            thirds of all weights of CE.
        norm_cfg: of the whole network; BN by default.
        kwargs: mmpretrain's ShuffleNetV2's; checkpoints of a plain ShuffleNetV2 work as there.
    """

    def __init__(
        self,
        widen_factor: float = 1.0,
        ce_cfg: dict | None = None,
        ce_stages: Sequence[bool] = (True,) * 3,
        norm_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        check_stages(ce_stages, 3)
        norm_cfg = norm_arguments(norm_cfg)
        ce_cfg = ce_arguments(ce_cfg, dict(norm=norm_cfg))
        super().__init__(widen_factor, norm_cfg=norm_cfg, **kwargs)
        for stage in compress(self.layers, ce_stages):  # the last of the layers, one convolution, is no stage
            for unit in stage:
                equalize_conv_module(unit.branch2[-1], ce_cfg)
        self._freeze_stages()  # mmpretrain's waits for train(), which comes after DDP has looked
