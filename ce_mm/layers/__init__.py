"""CE as nn.Modules, on torch alone: :class:`CENorm` stands where a network has its norm."""
from ce_mm.layers.branches import BatchDecorrelation, InstanceReweighting
from ce_mm.layers.ce_norm import CENorm
from ce_mm.layers.equalize import equalize
from ce_mm.layers.folded import FoldedCE, fold
from ce_mm.layers.switchable_norm import SwitchableNorm

__all__ = ["BatchDecorrelation", "CENorm", "FoldedCE", "InstanceReweighting", "SwitchableNorm", "equalize", "fold"]
