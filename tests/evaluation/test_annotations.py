import copy
import json
import os
from pathlib import Path

import pytest

from ce_mm.evaluation import AnnotationError, annotations, check_annotation_file, read_annotations


def test_a_good_file_is_returned_as_it_is(annotations: Path, dataset: dict) -> None:
    assert read_annotations(annotations) == dataset
    assert check_annotation_file(annotations) == len(dataset["annotations"])


def test_real_annotations_are_good(real_annotations: Path) -> None:
    assert len(read_annotations(real_annotations)["annotations"]) == 739
    check_annotation_file(real_annotations)


@pytest.mark.parametrize("read", [read_annotations, check_annotation_file])
class TestABadFileGivesOneErrorThatNamesIt:
    def test_missing(self, tmp_path: Path, read) -> None:
        with pytest.raises(AnnotationError, match=r"none\.json: no such file"):
            read(tmp_path / "none.json")

    def test_folder(self, tmp_path: Path, read) -> None:
        with pytest.raises(AnnotationError, match="is not a regular file"):
            read(tmp_path)

    def test_no_regular_file(self, tmp_path: Path, read) -> None:
        os.mkfifo(tmp_path / "pipe.json")
        with pytest.raises(AnnotationError, match="not a regular file"):
            read(tmp_path / "pipe.json")

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("", "not JSON"),
            ("images: 3", "not JSON"),
            ('{"images": [', "not JSON"),
            ("[" * 2_000_000, "not JSON"),
            ("[]", "holds a list"),
            ("3", "holds a int"),
            ("{}", "the list images and the list categories is missing"),
            ('{"images": [], "categories": [], "annotations": null}', "the list annotations is missing"),
            ('{"images": {}, "annotations": [], "categories": []}', "the list images is missing"),
        ],
    )
    def test_text(self, tmp_path: Path, read, text: str, fault: str) -> None:
        path = tmp_path / "bad.json"
        path.write_text(text)
        with pytest.raises(AnnotationError, match=f"bad.json: .*{fault}"):
            read(path)

    def test_not_text(self, tmp_path: Path, read) -> None:
        path = tmp_path / "bad.json"
        path.write_bytes(b"\xff\xd8\xff\xe0")
        with pytest.raises(AnnotationError, match="not JSON"):
            read(path)

    @pytest.mark.parametrize("key", ["images", "categories"])
    def test_nothing_in_a_list(self, annotations: Path, dataset: dict, read, key: str) -> None:
        annotations.write_text(json.dumps(dataset | {key: []}))
        with pytest.raises(AnnotationError, match=f"{key} is empty"):
            read(annotations)

    @pytest.mark.parametrize(
        ("key", "field"), [(key, field) for key, fields in annotations.TRAINING.items() for field in fields]
    )
    def test_a_field_is_lacking(self, annotations: Path, dataset: dict, read, key: str, field: str) -> None:
        del dataset[key][1][field]
        annotations.write_text(json.dumps(dataset))
        with pytest.raises(AnnotationError, match=rf"{key}\[1\] lacks {field};"):
            read(annotations)

    @pytest.mark.parametrize("key", ["images", "annotations", "categories"])
    def test_an_id_twice(self, annotations: Path, dataset: dict, read, key: str) -> None:
        dataset[key].append(copy.copy(dataset[key][0]))
        annotations.write_text(json.dumps(dataset))
        with pytest.raises(AnnotationError, match=f"the {key} id {dataset[key][0]['id']} is given 2 times"):
            read(annotations)

    @pytest.mark.parametrize("key", ["images", "annotations", "categories"])
    def test_an_id_that_is_none(self, annotations: Path, dataset: dict, read, key: str) -> None:
        dataset[key][1]["id"] = [5]
        annotations.write_text(json.dumps(dataset))
        with pytest.raises(AnnotationError, match=rf"{key} has the id \[5\]"):
            read(annotations)

    def test_a_category_name_twice(self, annotations: Path, dataset: dict, read) -> None:
        dataset["categories"][1]["name"] = "dog"
        annotations.write_text(json.dumps(dataset))
        with pytest.raises(AnnotationError, match="category name 'dog' is given 2 times"):
            read(annotations)

    @pytest.mark.parametrize("value", [[1.0, 2.0, 3.0], [1.0, 2.0, float("nan"), 4.0], "0 0 5 5", None])
    def test_a_box_that_is_none(self, annotations: Path, dataset: dict, read, value: object) -> None:
        dataset["annotations"][2]["bbox"] = value
        annotations.write_text(json.dumps(dataset))
        with pytest.raises(AnnotationError, match=r"annotations\[2\] \(id 3\): the bbox .* is no box"):
            read(annotations)

    def test_an_entry_that_is_no_object(self, annotations: Path, dataset: dict, read) -> None:
        dataset["images"][1] = "1.jpg"
        annotations.write_text(json.dumps(dataset))
        with pytest.raises(AnnotationError, match=r"images\[1\] is a str"):
            read(annotations)


@pytest.mark.parametrize("objects", [{}, {"annotations": []}])
def test_a_file_without_objects_is_read(annotations: Path, dataset: dict, objects: dict) -> None:
    del dataset["annotations"]
    annotations.write_text(json.dumps(dataset | objects))
    assert read_annotations(annotations) == dataset | {"annotations": []}
    assert check_annotation_file(annotations) == 0


@pytest.mark.parametrize("field", ["image_id", "category_id"])
def test_a_run_is_told_of_the_objects_that_it_leaves_out(annotations: Path, dataset: dict, caplog, field: str) -> None:
    dataset["annotations"][1][field] = 4711
    annotations.write_text(json.dumps(dataset))
    check_annotation_file(annotations)
    assert caplog.messages == [
        f"{annotations}: 1 of 3 annotations belong to no picture or category of the file, and are left out"
    ]


@pytest.mark.parametrize("field", ["image_id", "category_id"])
def test_a_run_fails_on_an_id_that_is_a_list(annotations: Path, dataset: dict, field: str) -> None:
    dataset["annotations"][1][field] = [1]
    annotations.write_text(json.dumps(dataset))
    with pytest.raises(AnnotationError, match=rf"annotations\[1\] \(id 2\): the {field} \[1\] is not in"):
        check_annotation_file(annotations)


@pytest.mark.parametrize("field", ["width", "height"])
def test_a_run_fails_on_a_size_that_is_no_number(annotations: Path, dataset: dict, field: str) -> None:
    dataset["images"][1][field] = "640"
    annotations.write_text(json.dumps(dataset))
    with pytest.raises(AnnotationError, match=rf"images\[1\] \(id 2\): the {field} '640' is not a finite number"):
        check_annotation_file(annotations)


def test_only_what_the_reader_needs_is_needed(annotations: Path, dataset: dict) -> None:
    dataset["annotations"][0] = {"id": 1, "image_id": 1, "bbox": None}
    annotations.write_text(json.dumps(dataset))
    fields = {"images": ("id",), "annotations": ("id", "image_id"), "categories": ("id",)}
    assert read_annotations(annotations, fields)["annotations"][0]["iscrowd"] == 0


def test_pictures_may_be_named_by_text(annotations: Path, dataset: dict) -> None:
    for entry in dataset["images"]:
        entry["id"] = f"picture {entry['id']}"
    for entry in dataset["annotations"]:
        entry["image_id"] = f"picture {entry['image_id']}"
    annotations.write_text(json.dumps(dataset))
    assert read_annotations(annotations) == dataset


class TestALargeFile:
    @pytest.fixture(autouse=True)
    def every_file_is_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(annotations, "FULL_PARSE_BELOW", 0)

    def test_is_not_parsed(self, annotations: Path) -> None:
        annotations.write_text('\n {"images": "annotations": "categories" }\n')
        assert check_annotation_file(annotations) is None

    def test_that_broke_off_is_refused(self, annotations: Path) -> None:
        annotations.write_bytes(annotations.read_bytes()[:-1])
        with pytest.raises(AnnotationError, match="broken off"):
            check_annotation_file(annotations)

    def test_that_is_no_object_is_refused(self, annotations: Path, dataset: dict) -> None:
        annotations.write_text(json.dumps([dataset]))
        with pytest.raises(AnnotationError, match="no JSON object"):
            check_annotation_file(annotations)
