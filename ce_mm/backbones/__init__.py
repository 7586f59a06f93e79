"""Backbones with CE: small subclasses of mmpretrain's, registered under their own names."""
from ce_mm.compat.requirements import require

require("mmengine", "mmcv", "mmpretrain")

from ce_mm.backbones.arguments import ce_arguments, norm_arguments
from ce_mm.backbones.ce_conv_module import equalize_conv_module
from ce_mm.backbones.ce_mobilenet_v2 import CEMobileNetV2
from ce_mm.backbones.ce_resnet import CEResNet
from ce_mm.backbones.ce_shufflenet_v2 import CEShuffleNetV2
from ce_mm.backbones.ce_vgg import CEVGG
from ce_mm.backbones.norm_eval import NormEval

__all__ = [
    "CEVGG",
    "CEMobileNetV2",
    "CEResNet",
    "CEShuffleNetV2",
    "NormEval",
    "ce_arguments",
    "equalize_conv_module",
    "norm_arguments",
]
