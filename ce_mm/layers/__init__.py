"""CE as nn.Modules; :class:`CENorm` is registered as ``CE`` and :class:`SwitchableNorm` as ``SN``, so that
``norm_cfg=dict(type='CE')`` works everywhere.
"""
from ce_mm.compat.requirements import require

require("mmengine", "mmcv")

from mmengine.registry import MODELS

from ce_mm.layers.batch_decorrelation import BatchDecorrelation
from ce_mm.layers.ce_norm import CENorm
from ce_mm.layers.folded import FoldedCE, fold
from ce_mm.layers.instance_reweighting import InstanceReweighting
from ce_mm.layers.switchable_norm import SwitchableNorm

MODELS.register_module("CE", module=CENorm)
MODELS.register_module("SN", module=SwitchableNorm)

__all__ = ["BatchDecorrelation", "CENorm", "FoldedCE", "InstanceReweighting", "SwitchableNorm", "fold"]
