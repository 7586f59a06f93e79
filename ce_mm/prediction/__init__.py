"""A detector on pictures: what it finds, drawn and as numbers."""
from ce_mm.compat.requirements import require

require("mmengine", "mmcv", "mmdet")

from ce_mm.prediction.predicting import Report, predict

__all__ = ["Report", "predict"]
