"""Where the labels of boxes go: beside small objects, and over as little as can be of others and of their labels."""
from collections.abc import Iterable

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""
LETTER, LINE = 0.55, 1.5
"""Width of a letter and height of a line, with the margin of a label, for a font of size 1."""


def label_size(text: str, font_pixels: float) -> tuple[float, float]:
    """About the width and height of a label of one line, in pixels."""
    return (len(text) + 1) * LETTER * font_pixels, LINE * font_pixels


class LabelPlaces:
    """Places in one picture, given away one by one.

    A label is tried above its box, below it, right and left of it, and inside at its upper left corner. Taken is the
    place that covers least, an object of so many pixels by the share of it that is covered: a large object may well
    bear a label, a small one would be gone.

    Args:
        boxes: of all objects.
        width, height: of the picture.
    """

    def __init__(self, boxes: Iterable[Box], width: float, height: float) -> None:
        self.covered, self.width, self.height = list(boxes), width, height

    def take(self, box: Box, size: tuple[float, float]) -> tuple[float, float]:
        """The upper left corner of the label of a box, in the picture, if the label is no larger than that.

        Args:
            box: whose label it is.
            size: width and height of the label.
        """
        (left, top, right, bottom), (width, height) = box, size
        corners = (left, top - height), (left, bottom), (right, top), (left - width, top), (left, top)
        labels = [self._inside(corner, size) for corner in corners]
        best = min(labels, key=lambda label: sum(_share(label, other) for other in self.covered))
        self.covered.append(best)
        return best[:2]

    def _inside(self, corner: tuple[float, float], size: tuple[float, float]) -> Box:
        """A label at a corner, moved into the picture."""
        (x, y), (width, height) = corner, size
        x, y = max(min(x, self.width - width), 0), max(min(y, self.height - height), 0)
        return x, y, x + width, y + height


def _share(label: Box, other: Box) -> float:
    """How much of another box a label covers, 0 to 1."""
    width = min(label[2], other[2]) - max(label[0], other[0])
    height = min(label[3], other[3]) - max(label[1], other[1])
    area = (other[2] - other[0]) * (other[3] - other[1])
    return max(width, 0) * max(height, 0) / area if area > 0 else 0
