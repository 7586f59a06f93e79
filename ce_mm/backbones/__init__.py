"""Backbones with CE: small subclasses of mmpretrain's, registered under their own names."""
from ce_mm.compat.requirements import require

require("mmengine", "mmcv", "mmpretrain")

from ce_mm.backbones.ce_resnet import CEResNet

__all__ = ["CEResNet"]
