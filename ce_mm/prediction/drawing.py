"""mmdet's visualizer, but for the labels of boxes, which mmdet writes over what they name."""
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import torch
from mmdet.visualization import DetLocalVisualizer

from ce_mm.analysis.label_places import Box, LabelPlaces, label_size


class Visualizer(DetLocalVisualizer):
    """Draws as mmdet's, with each box's label where :class:`~ce_mm.analysis.label_places.LabelPlaces` has a place."""

    _places: LabelPlaces
    _unlabelled: Iterator[Box] = iter(())

    def set_image(self, image: np.ndarray) -> None:
        """As mmdet's; a new picture has no boxes yet."""
        super().set_image(image)
        self._unlabelled = iter(())

    def draw_bboxes(self, bboxes: np.ndarray | torch.Tensor, *args: Any, **kwargs: Any) -> Self:
        """As mmdet's, which then writes their labels, one after the other."""
        boxes = [tuple(box) for box in bboxes.tolist()]
        self._places, self._unlabelled = LabelPlaces(boxes, self.width, self.height), iter(boxes)
        return super().draw_bboxes(bboxes, *args, **kwargs)

    def draw_texts(self, texts: str, positions: np.ndarray | torch.Tensor, **kwargs: Any) -> Self:
        """As mmdet's; of the next box, not at the position that is given, but at a place of its own."""
        box = next(self._unlabelled, None)
        if box is not None:
            size = label_size(texts, kwargs["font_sizes"] * self.dpi / 72)
            positions = np.array(self._places.take(box, size))
        return super().draw_texts(texts, positions, **kwargs)
