"""CE-VGG: a VGG with CE after the norm of every convolution, and a rectifier of choice.

With ``num_classes=-1``, the default, it ends with the last feature map: with global average pooling behind it, that is
the form for CIFAR-10.
"""
from collections.abc import Sequence
from itertools import compress
from typing import Any

from mmcv.cnn import ConvModule
from mmpretrain.models.backbones import VGG

from ce_mm.backbones.arguments import ce_arguments, check_stages, norm_arguments
from ce_mm.backbones.ce_conv_module import equalize_conv_module
from ce_mm.backbones.norm_eval import NormEval
from ce_mm.backbones.rectifier import replace_rectifiers


class CEVGG(NormEval, VGG):
    """VGG with Channel Equilibrium.

    Args:
        depth: 11, 13, 16 or 19.
        ce_cfg: CENorm's arguments; its base norm is ``norm_cfg`` unless given here.
        ce_stages: which of the five stages, each of which ends with a pool, have CE; all by default.
        norm_cfg: of the whole network; BN by default.
        act_cfg: the rectifier at every place, also in the classifier; ReLU by default. (None is ReLU here, while
            mmpretrain's VGG then has no rectifier behind its convolutions.)
        num_classes: above 0, VGG's own classifier of three layers is part of the network.
        kwargs: mmpretrain's VGG's; checkpoints of a plain VGG with the same norm work as there.
    """

    def __init__(
        self,
        depth: int,
        ce_cfg: dict | None = None,
        ce_stages: Sequence[bool] = (True,) * 5,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        num_classes: int = -1,
        **kwargs: Any,
    ) -> None:
        check_stages(ce_stages, 5)
        norm_cfg = norm_arguments(norm_cfg)
        ce_cfg = ce_arguments(ce_cfg, dict(norm=norm_cfg))
        super().__init__(depth, num_classes, norm_cfg=norm_cfg, **kwargs)
        if act_cfg is not None:
            replace_rectifiers(self, act_cfg)
        for stage in compress(self.range_sub_modules, ce_stages):
            for module in self.features[slice(*stage)]:
                if isinstance(module, ConvModule):
                    equalize_conv_module(module, ce_cfg)
        self._freeze_stages()  # mmpretrain's waits for train(), which comes after DDP has looked
