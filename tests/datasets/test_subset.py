import copy
import json

import pytest

from ce_mm.datasets.subset import write_subset
from ce_mm.evaluation.annotations import AnnotationError
from ce_mm.files import DestinationError


@pytest.fixture
def annotations(tmp_path):
    def obj(number, image, area=2000, iscrowd=0):
        return dict(
            id=number, image_id=image, category_id=1, area=area, iscrowd=iscrowd, bbox=[0, 0, 40, 50],
            segmentation=[[0, 0, 40, 0, 40, 50]],
        )  # fmt: skip

    data = dict(
        images=[dict(id=i, file_name=f"{i}.jpg", width=64, height=64) for i in (5, 1, 2, 3, 4)],
        annotations=[obj(1, 1), obj(2, 2, area=900), obj(3, 3, iscrowd=1), obj(4, 4), obj(5, 5), obj(6, 5)],
        categories=[dict(id=1, name="cup")],
    )
    path = tmp_path / "all.json"
    path.write_text(json.dumps(data))
    return path


def test_pictures_with_small_objects_or_crowds_are_passed_over(annotations, tmp_path):
    names = write_subset(annotations, tmp_path / "new" / "some.json", 3)
    subset = json.loads((tmp_path / "new" / "some.json").read_text())
    assert names == ["5.jpg", "1.jpg", "4.jpg"] == [image["file_name"] for image in subset["images"]]
    assert sorted(o["id"] for o in subset["annotations"]) == [1, 4, 5, 6]
    assert subset["categories"] == [dict(id=1, name="cup")]


@pytest.mark.parametrize("name", ["all.json", "folder/../all.json", "missing/../all.json", "link.json"])
def test_the_source_is_not_replaced(annotations, tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.json").symlink_to(annotations)
    before = annotations.read_bytes()
    with pytest.raises(DestinationError, match="from which it would be made"):
        write_subset(annotations, tmp_path / name, 1)
    assert annotations.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.json", "folder", "link.json"]


def test_what_it_reads_is_looked_at_before_it_writes(annotations, tmp_path):
    whole = json.loads(annotations.read_text())
    for part, field in (("images", "file_name"), ("annotations", "area"), ("annotations", "image_id")):
        for value in (None, [1]):
            data = copy.deepcopy(whole)
            data[part][0][field] = value
            annotations.write_text(json.dumps(data))
            with pytest.raises(AnnotationError, match=rf"{part}\[0\] .* the {field} "):
                write_subset(annotations, tmp_path / "some.json", 1)
        del data[part][0][field]
        annotations.write_text(json.dumps(data))
        with pytest.raises(AnnotationError, match=rf"{part}\[0\] lacks {field}"):
            write_subset(annotations, tmp_path / "some.json", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["all.json"]


def test_what_it_does_not_read_may_be_missing(annotations, tmp_path):
    data = json.loads(annotations.read_text())
    for entry in data["annotations"]:
        del entry["bbox"], entry["segmentation"], entry["category_id"]
        if not entry["iscrowd"]:
            del entry["iscrowd"]
    for image in data["images"]:
        del image["width"], image["height"]
    annotations.write_text(json.dumps(data))
    assert write_subset(annotations, tmp_path / "some.json", 3) == ["5.jpg", "1.jpg", "4.jpg"]


def test_too_few_pictures_are_an_error_that_counts_them(annotations, tmp_path):
    with pytest.raises(AnnotationError, match=r"has 3 pictures .* 4 were asked for"):
        write_subset(annotations, tmp_path / "new/some.json", 4)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        write_subset(annotations, tmp_path / "some.json", 0)
    assert [p.name for p in tmp_path.iterdir()] == ["all.json"]


def test_a_write_that_fails_leaves_nothing_behind(annotations, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_subset(annotations, tmp_path / "some.json", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["all.json"]
