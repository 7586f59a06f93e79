"""What may stand in an annotation or results file: the same check for both, before pycocotools sees any of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as run_lengths

from ce_mm.evaluation import AnnotationError, ResultsError, evaluate_coco
from ce_mm.evaluation.entries import shown

BOTH = ("bbox", "segm")
PIXELS = 80 * 100


def write(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def refused(dataset, detections, tmp_path, write_results):
    """That a change of the truth (``dataset``) is refused with this text."""

    def refused(match: str, metrics=BOTH) -> None:
        with pytest.raises(AnnotationError, match=match):
            evaluate_coco(write(tmp_path / "changed.json", dataset), write_results(detections), metrics)

    return refused


def polygons(x: int, y: int, width: int, height: int) -> list[list[int]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def uncompressed(x: int, y: int, width: int, height: int) -> dict:
    bitmap = np.zeros((80, 100), int)
    bitmap[y : y + height, x : x + width] = 1
    changes = np.flatnonzero(np.diff(bitmap.T.ravel())) + 1
    return {"size": [80, 100], "counts": np.diff([0, *changes, PIXELS]).tolist()}


@pytest.mark.parametrize("form", [polygons, uncompressed])
def test_the_truth_may_have_masks_of_each_form(dataset, annotations, detections, tmp_path, write_results, form) -> None:
    expected = evaluate_coco(annotations, write_results(detections))
    for annotation in dataset["annotations"]:
        annotation["segmentation"] = form(*map(int, annotation["bbox"]))
    assert evaluate_coco(write(tmp_path / "other.json", dataset), write_results(detections)) == expected


@pytest.mark.parametrize("form", [polygons, uncompressed])
def test_the_results_may_have_masks_of_each_form(annotations, detections, write_results, form) -> None:
    expected = evaluate_coco(annotations, write_results(detections))
    for entry in detections:
        entry["segmentation"] = form(*map(int, entry["bbox"]))
        assert evaluate_coco(annotations, write_results(detections)) == expected


def test_a_short_polygon_after_the_first_is_read_as_pycocotools_reads_it(dataset, detections, tmp_path, write_results):
    dataset["annotations"][0]["segmentation"] = [*polygons(10, 10, 30, 20), [1, 2], [3, 4, 5, 6]]
    numbers = evaluate_coco(write(tmp_path / "other.json", dataset), write_results(detections))
    assert numbers["coco/segm_mAP_50"] == pytest.approx(1)


class TestMasksThatWouldEndTheProcess:
    @pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "1", 10**400, [1]])
    def test_a_coordinate_that_is_no_number(self, dataset, refused, value) -> None:
        dataset["annotations"][2]["segmentation"] = [[1, 1, 5, 1, 5, value]]
        refused(r"annotations\[2\] \(id 3\): the segmentation .* is no mask; expected polygons", ["segm"])

    @pytest.mark.parametrize("outline", [[1, 1, 5, 1, 5, 1e9], [1e9, 1e9, 1e9, 2e9], [0, 0, 9e6, 0] * 9])
    def test_a_coordinate_far_away(self, dataset, refused, outline) -> None:
        dataset["annotations"][2]["segmentation"] = [[1, 1, 5, 1, 5, 5], outline]
        refused("has points or an outline of more than 10000000 pixels")

    @pytest.mark.parametrize(
        "value", [[[]], [[1, 2]], [[1, 2, 3, 4]], [[1, 1, 5, 1, 5]], [1, 1, 5, 1, 5, 5], [], 5, None, "x"]
    )
    def test_what_is_no_polygon(self, dataset, refused, value) -> None:
        dataset["annotations"][0]["segmentation"] = value
        refused("is no mask; expected polygons")

    @pytest.mark.parametrize("counts", [[0, 60], [PIXELS + 1], [], [0]])
    def test_run_lengths_that_do_not_cover_the_picture(self, dataset, refused, counts) -> None:
        dataset["annotations"][0]["segmentation"] = {"size": [80, 100], "counts": counts}
        refused(rf"has run lengths of {sum(counts)} pixels in all; expected the picture's {PIXELS}")

    @pytest.mark.parametrize("counts", [[-1, PIXELS + 1], [0.5, PIXELS - 0.5], [None], [[PIXELS]], 5, None, "P"])
    def test_run_lengths_that_are_none(self, dataset, refused, counts) -> None:
        dataset["annotations"][0]["segmentation"] = {"size": [80, 100], "counts": counts}
        refused("has damaged counts")

    @pytest.mark.parametrize("mask", [{"counts": [PIXELS]}, {"counts": [PIXELS], "size": [100, 80]}, {"size": 5}])
    def test_a_size_that_is_not_the_pictures(self, dataset, refused, mask) -> None:
        dataset["annotations"][0]["segmentation"] = mask
        refused(r"has the size .*; expected the picture's, \[80, 100\]")

    @pytest.mark.parametrize("width", [0, -1, 100.5, 10**9])
    def test_a_picture_of_no_size(self, dataset, refused, width) -> None:
        dataset["images"][1]["width"] = width
        refused("belongs to a picture of height 80 and width", ["segm"])


def compressed(*lengths: int) -> str:
    return run_lengths.frPyObjects({"size": [80, 100], "counts": list(lengths)}, 80, 100)["counts"].decode()


def test_the_results_masks_are_looked_at_alike(annotations, detections, write_results) -> None:
    detections[1]["segmentation"]["counts"] = compressed(0, 60)
    with pytest.raises(ResultsError, match=r"segm results\[1\] .* has run lengths of 60 pixels in all"):
        evaluate_coco(annotations, write_results(detections))


@pytest.mark.parametrize("counts", ["O" + compressed(PIXELS + 1), "oooooo0", compressed(*[1] * PIXELS) + "N"])
def test_a_negative_or_endless_run_length_is_damage(annotations, detections, write_results, counts) -> None:
    detections[1]["segmentation"]["counts"] = counts
    with pytest.raises(ResultsError, match="has damaged counts"):
        evaluate_coco(annotations, write_results(detections))


def test_any_mask_that_pycocotools_makes_is_read(dataset, annotations, detections, write_results) -> None:
    random = np.random.default_rng(0)
    for density in (0, 0.001, 0.5, 1):
        mask = run_lengths.encode(np.asfortranarray(random.random((80, 100)) < density, np.uint8))
        detections[0]["segmentation"] = {"size": [80, 100], "counts": mask["counts"].decode()}
        evaluate_coco(annotations, write_results(detections), ["segm"])


@pytest.mark.parametrize("field", ["image_id", "category_id"])
@pytest.mark.parametrize("value", [4711, None, [1], {}, "1"])
def test_an_object_of_nothing_in_the_file_is_refused(dataset, refused, field, value) -> None:
    dataset["annotations"][1][field] = value
    refused(rf"annotations\[1\] \(id 2\): the {field} .* is not in the annotation file")


@pytest.mark.parametrize("value", [2, -1, None, "1", [0], float("nan"), 256])
def test_a_crowd_is_0_or_1(dataset, refused, value) -> None:
    dataset["annotations"][1]["iscrowd"] = value
    refused(r"annotations\[1\] \(id 2\): the iscrowd .* is neither 0 nor 1")


def test_an_id_beyond_64_bits_is_refused(dataset, refused) -> None:
    dataset["annotations"][1]["id"] = 10**400
    refused("annotations has the id .*; expected integers of 64 bits")


def test_boxes_are_evaluated_whatever_the_masks_are(dataset, annotations, detections, tmp_path, write_results) -> None:
    expected = evaluate_coco(annotations, write_results(detections), ["bbox"])
    dataset["annotations"][0]["segmentation"] = [[None]]
    del dataset["images"][0]["height"]
    assert evaluate_coco(write(tmp_path / "other.json", dataset), write_results(detections), ["bbox"]) == expected


def test_masks_are_evaluated_whatever_the_boxes_are(dataset, annotations, detections, tmp_path, write_results) -> None:
    expected = evaluate_coco(annotations, write_results(detections), ["segm"])
    del dataset["annotations"][0]["bbox"]
    assert evaluate_coco(write(tmp_path / "other.json", dataset), write_results(detections), ["segm"]) == expected


def test_other_parts_of_the_file_may_be_of_any_depth(dataset, annotations, detections, tmp_path, write_results) -> None:
    expected = evaluate_coco(annotations, write_results(detections))
    text = json.dumps(dataset | {"info": 0})
    for place in ('"info": 0', '"name": "dog"'):
        deep = tmp_path / "deep.json"
        deep.write_text(text.replace(place, f'{place}, "other": {"[" * 800}{"]" * 800}'))
        assert evaluate_coco(deep, write_results(detections)) == expected


def test_a_value_is_shown_in_a_line() -> None:
    doubled = [1]
    for _ in range(40):
        doubled = [doubled] * 10
    for value in ([0] * 10**6, doubled, "x" * 10**6, {"a": {"b": {"c": doubled}}}):
        assert len(shown(value)) < 500
