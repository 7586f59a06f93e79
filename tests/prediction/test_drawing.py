"""What is drawn of a detector's boxes: a small object can be seen, and its label stands beside it."""
import numpy as np
import torch
from mmengine.structures import InstanceData

from ce_mm.prediction.drawing import Visualizer


def drawn(*boxes):
    """A white picture with objects in it, drawn."""
    visualizer = Visualizer(line_width=1)
    visualizer.dataset_meta = dict(classes=("cat",), palette=[(0, 160, 0)])
    found = InstanceData(bboxes=torch.tensor(boxes, dtype=torch.float32), scores=torch.full((len(boxes),), 0.9))
    found.labels = torch.zeros(len(boxes), dtype=torch.int64)
    white = np.full((120, 160, 3), 255, np.uint8)
    return visualizer._draw_instances(white, found, ["cat"], [(0, 160, 0)]), visualizer


def dark(pixels):
    return (pixels.max(-1) < 100).sum()


def test_a_label_stands_beside_a_small_object():
    picture, _ = drawn((60, 60, 74, 72))
    assert dark(picture[62:71, 62:73]) == 0 and dark(picture[45:60]) > 50


def test_every_box_has_a_label_of_its_own():
    one, _ = drawn((60, 60, 74, 72))
    two, _ = drawn((60, 60, 74, 72), (62, 60, 76, 72))
    assert dark(two) > 1.7 * dark(one)


def test_what_is_written_later_stands_where_it_is_told():
    _, visualizer = drawn((60, 60, 74, 72))
    before = visualizer.get_image()
    visualizer.draw_texts("later", np.array([10, 100]), font_sizes=8, colors="black")
    assert dark(visualizer.get_image()[95:]) > dark(before[95:])
