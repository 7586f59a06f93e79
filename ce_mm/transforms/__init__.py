"""Steps of data pipelines, for mmdet's and mmpretrain's configs alike."""
from ce_mm.compat.requirements import require

require("mmengine", "mmcv")

from ce_mm.transforms.decoding import PictureError, check_size, read_picture
from ce_mm.transforms.load_image import LoadImage

__all__ = ["LoadImage", "PictureError", "check_size", "read_picture"]
