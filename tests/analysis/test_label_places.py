"""Places of labels: beside small objects, in the picture, over neither objects nor each other where there is room."""
import pytest

from ce_mm.analysis.label_places import LabelPlaces, label_size

SMALL, LARGE, SIZE = (40, 40, 50, 48), (5, 5, 195, 155), (30, 10)


def test_a_label_stands_above_its_box_where_there_is_room():
    assert LabelPlaces([SMALL], 200, 160).take(SMALL, SIZE) == (40, 30)


@pytest.mark.parametrize(
    ("box", "place"),
    [((40, 2, 50, 10), (40, 10)), ((180, 40, 190, 48), (170, 30)), ((40, 0, 50, 160), (50, 0)), (LARGE, (5, 0))],
    ids=["below at the top", "moved in at the right", "right of what is as high", "on the edge of what fills all"],
)
def test_it_stays_in_the_picture(box, place):
    x, y = LabelPlaces([box], 200, 160).take(box, SIZE)
    assert (x, y) == place


def test_it_makes_way_for_a_small_object_but_not_for_a_large_one():
    above = (40, 31, 48, 38)
    assert LabelPlaces([SMALL, above], 200, 160).take(SMALL, SIZE) == (40, 48)
    assert LabelPlaces([SMALL, LARGE], 200, 160).take(SMALL, SIZE) == (40, 30)


def test_two_labels_do_not_cover_each_other():
    places = LabelPlaces([SMALL, (41, 40, 51, 48)], 200, 160)
    assert places.take(SMALL, SIZE) != places.take((41, 40, 51, 48), SIZE)


def test_a_longer_text_is_a_wider_label():
    (short, height), (long, same) = label_size("cat", 10), label_size("elephant", 10)
    assert long > short and height == same
