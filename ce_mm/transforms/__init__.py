"""Steps of data pipelines, for mmdet's and mmpretrain's configs alike."""
from ce_mm.compat.requirements import require

require("mmengine", "mmcv")

from ce_mm.transforms.load_image import LoadImage, PictureError

__all__ = ["LoadImage", "PictureError"]
