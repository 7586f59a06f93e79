"""Trained networks as files for other runtimes: ONNX, TorchScript, PyTorch's exported program."""
from ce_mm.compat.requirements import require

require("mmengine", "mmcv", "mmpretrain")

from ce_mm.export.exporting import Export, export

__all__ = ["Export", "export"]
