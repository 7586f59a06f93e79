"""The data sets that the project makes itself."""

from ce_mm.datasets.shapes import CATEGORIES, make_shapes

__all__ = ["CATEGORIES", "make_shapes"]
