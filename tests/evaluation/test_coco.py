import contextlib
import copy
import io
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ce_mm.evaluation import AnnotationError, ResultsError, evaluate_coco, format_table
from ce_mm.files import DestinationError

BOTH = ("bbox", "segm")
# In the order of COCOeval.stats.
NAMES = ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"]
NAMES += ["AR@1", "AR@10", "AR@100", "AR_s@100", "AR_m@100", "AR_l@100"]


def pycocotools_stats(annotations: Path, results: Path, metric: str) -> list[float]:
    """The twelve numbers from pycocotools, called as its own demo does."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        return stats_of(COCOeval(truth, truth.loadRes(str(results)), metric))


def stats_of(evaluation: COCOeval) -> list[float]:
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats.tolist()


def named(metric: str, stats: list[float]) -> dict[str, float]:
    return {f"coco/{metric}_{name}": value for name, value in zip(NAMES, stats, strict=True)}


def write(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path


class TestOnRealObjects:
    @pytest.fixture(scope="class")
    def results(self, jittered, tmp_path_factory) -> Path:
        return write(tmp_path_factory.mktemp("results") / "results.json", jittered)

    @pytest.fixture(scope="class")
    def numbers(self, real_annotations, results) -> dict[str, float]:
        return evaluate_coco(real_annotations, results, BOTH, per_category=True)

    @pytest.mark.parametrize("metric", BOTH)
    def test_the_twelve_numbers_are_those_of_pycocotools(self, real_annotations, results, numbers, metric) -> None:
        stats = pycocotools_stats(real_annotations, results, metric)
        assert 0.2 < stats[0] < 0.8  # neither perfect nor void, so that a difference would show
        assert named(metric, stats).items() <= numbers.items()

    @pytest.mark.parametrize("metric", BOTH)
    def test_the_categories_have_the_numbers_of_pycocotools(self, real_annotations, results, numbers, metric) -> None:
        expected = {}
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(real_annotations))
            detections = truth.loadRes(str(results))
            for category in truth.dataset["categories"]:
                alone = COCOeval(truth, detections, metric)
                alone.params.catIds = [category["id"]]
                expected[f"coco/{metric}_{category['name']}_precision"] = stats_of(alone)[0]
        assert len(set(expected.values())) > 30
        assert expected.items() <= numbers.items()

    def test_nothing_else_is_returned(self, real_annotations, numbers) -> None:
        assert len(numbers) == 2 * (12 + len(json.loads(real_annotations.read_text())["categories"]))
        assert {type(value) for value in numbers.values()} == {float}

    def test_masks_without_boxes_are_sized_by_themselves(self, real_annotations, jittered, numbers, tmp_path) -> None:
        masks = [{key: value for key, value in entry.items() if key != "bbox"} for entry in jittered]
        results = write(tmp_path / "masks.json", masks)
        alone = evaluate_coco(real_annotations, results, ["segm"])
        assert alone == named("segm", pycocotools_stats(real_annotations, results, "segm"))
        assert alone["coco/segm_mAP"] == numbers["coco/segm_mAP"]
        assert alone["coco/segm_mAP_m"] != numbers["coco/segm_mAP_m"]

    def test_the_order_of_the_results_does_not_matter(self, real_annotations, jittered, numbers, tmp_path) -> None:
        shuffled = [jittered[index] for index in np.random.default_rng(0).permutation(len(jittered))]
        results = write(tmp_path / "shuffled.json", shuffled)
        assert evaluate_coco(real_annotations, results, BOTH, per_category=True) == numbers

    def test_the_order_of_the_metrics_is_that_of_the_numbers(self, real_annotations, results, numbers) -> None:
        turned = evaluate_coco(real_annotations, results, ("segm", "bbox", "segm"), per_category=True)
        assert turned == numbers
        assert next(iter(turned)) == "coco/segm_mAP"

    def test_the_objects_themselves_have_an_ap_of_one(self, real_annotations, tmp_path) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(real_annotations))
        entries = []
        for annotation in truth.dataset["annotations"]:
            if not annotation["iscrowd"]:
                mask = run_lengths.encode(truth.annToMask(annotation))
                mask["counts"] = mask["counts"].decode()
                common = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
                entries.append(common | {"segmentation": mask, "score": 1 / annotation["id"]})
        numbers = evaluate_coco(real_annotations, write(tmp_path / "perfect.json", entries))
        assert numbers["coco/bbox_mAP"] == pytest.approx(1)
        assert numbers["coco/segm_mAP"] == pytest.approx(1)

    def test_what_mmdet_dumps_has_the_numbers_that_mmdet_finds(self, real_annotations, jittered, tmp_path) -> None:
        metrics = pytest.importorskip("mmdet.evaluation.metrics", exc_type=ImportError)
        torch = pytest.importorskip("torch")
        truth = json.loads(real_annotations.read_text())
        labels = {category["id"]: label for label, category in enumerate(truth["categories"])}
        samples = []
        for image in truth["images"]:
            entries = [entry for entry in jittered if entry["image_id"] == image["id"]]
            boxes = torch.tensor([entry["bbox"] for entry in entries]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            size = image["height"], image["width"]
            masks = [run_lengths.decode(entry["segmentation"]) for entry in entries]
            prediction = {
                "bboxes": boxes,
                "scores": torch.tensor([entry["score"] for entry in entries]),
                "labels": torch.tensor([labels[entry["category_id"]] for entry in entries], dtype=torch.long),
                "masks": torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *size)),
            }
            samples.append({"img_id": image["id"], "ori_shape": size, "pred_instances": prediction})

        judge = metrics.CocoMetric(
            str(real_annotations), list(BOTH), format_only=True, outfile_prefix=str(tmp_path / "mmdet")
        )
        judge.dataset_meta = {"classes": [category["name"] for category in truth["categories"]]}
        judge.process({}, copy.deepcopy(samples))
        judge.evaluate(len(samples))
        expected = named("bbox", pycocotools_stats(real_annotations, tmp_path / "mmdet.bbox.json", "bbox"))
        masks = json.loads((tmp_path / "mmdet.segm.json").read_text())
        for entry in masks:
            del entry["bbox"]  # as CocoMetric does before it evaluates
        results = write(tmp_path / "mmdet.masks.json", masks)
        expected |= named("segm", pycocotools_stats(real_annotations, results, "segm"))

        dump = metrics.DumpDetResults(str(tmp_path / "dumped.pkl"))
        dump.process({}, copy.deepcopy(samples))
        dump.evaluate(len(samples))
        assert evaluate_coco(real_annotations, tmp_path / "dumped.pkl") == expected


def test_no_detections_at_all_are_worth_zero(annotations, write_results) -> None:
    numbers = evaluate_coco(annotations, write_results([]), per_category=True)
    there = {key: value for key, value in numbers.items() if not key.endswith(("_s", "_s@100", "_l", "_l@100"))}
    assert set(there.values()) == {0.0}
    assert there["coco/segm_cat_precision"] == 0


def test_a_pickle_of_no_pictures_is_worth_zero(annotations, tmp_path) -> None:
    results = tmp_path / "results.pickle"
    results.write_bytes(pickle.dumps([]))
    assert evaluate_coco(annotations, results)["coco/bbox_mAP"] == 0


def test_a_size_and_a_category_without_objects_have_minus_one(dataset, detections, tmp_path, write_results) -> None:
    dataset["categories"].append({"id": 9, "name": "unicorn"})
    annotations = write(tmp_path / "annotations.json", dataset)
    numbers = evaluate_coco(annotations, write_results(detections), per_category=True)
    for name in ("mAP_l", "AR_l@100", "unicorn_precision"):
        assert numbers[f"coco/bbox_{name}"] == numbers[f"coco/segm_{name}"] == -1


def test_a_file_without_objects_has_minus_one_and_says_so(dataset, detections, tmp_path, write_results, caplog) -> None:
    del dataset["annotations"]
    for results in (detections, []):
        numbers = evaluate_coco(write(tmp_path / "annotations.json", dataset), write_results(results))
        assert set(numbers.values()) == {-1}
    assert any("there is no object" in message for message in caplog.messages)


def test_a_picture_of_background_alone_counts_what_is_found_there(dataset, detections, tmp_path, write_results) -> None:
    dataset["annotations"] = dataset["annotations"][:2]
    annotations = write(tmp_path / "annotations.json", dataset)
    without, with_one = (evaluate_coco(annotations, write_results(found)) for found in (detections[:2], detections))
    assert without["coco/bbox_mAP"] == pytest.approx(1)
    detections[2]["score"] = 0.9
    assert evaluate_coco(annotations, write_results(detections))["coco/bbox_mAP"] < with_one["coco/bbox_mAP"]


def test_a_detection_of_a_crowd_counts_neither_way(dataset, detections, tmp_path, write_results) -> None:
    dataset["annotations"][0]["iscrowd"] = 1
    annotations = write(tmp_path / "annotations.json", dataset)
    with_crowd = evaluate_coco(annotations, write_results(detections))
    assert with_crowd == evaluate_coco(annotations, write_results(detections[1:]))
    assert with_crowd["coco/bbox_mAP"] == pytest.approx(1)


def test_pycocotools_prints_nothing(annotations, detections, write_results, capfd, caplog) -> None:
    with caplog.at_level(logging.INFO, "ce_mm.evaluation"):
        evaluate_coco(annotations, write_results(detections))
    assert capfd.readouterr().out == ""
    assert "bbox: comparing 3 results with 3 objects in 2 pictures" in caplog.messages


def test_an_object_with_the_id_zero_is_warned_of(dataset, detections, tmp_path, write_results, caplog) -> None:
    dataset["annotations"][0]["id"] = 0
    evaluate_coco(write(tmp_path / "annotations.json", dataset), write_results(detections), ["bbox"])
    assert any("has the id 0" in message for message in caplog.messages)


@pytest.mark.parametrize("metrics", [(), ("box",), ("bbox", "proposal"), "bbox"])
def test_unknown_metrics_are_refused(annotations, detections, write_results, metrics) -> None:
    with pytest.raises(ResultsError, match="expected one or more of bbox, segm"):
        evaluate_coco(annotations, write_results(detections), metrics)


@pytest.mark.parametrize("metric", BOTH)
def test_a_missing_iscrowd_is_zero(dataset, annotations, detections, tmp_path, write_results, metric) -> None:
    expected = evaluate_coco(annotations, write_results(detections), [metric])
    del dataset["annotations"][2]["iscrowd"]
    assert evaluate_coco(write(tmp_path / "without.json", dataset), write_results(detections), [metric]) == expected


def test_annotations_without_masks_serve_boxes_only(dataset, detections, tmp_path, write_results) -> None:
    dataset["annotations"][0]["segmentation"] = []
    del dataset["annotations"][1]["segmentation"]
    annotations = write(tmp_path / "annotations.json", dataset)
    assert evaluate_coco(annotations, write_results(detections), ["bbox"])["coco/bbox_mAP"] == pytest.approx(1)
    with pytest.raises(AnnotationError, match=r"annotations\[1\] lacks segmentation"):
        evaluate_coco(annotations, write_results(detections))
    dataset["annotations"][1]["segmentation"] = []
    with pytest.raises(AnnotationError, match=r"annotations\[0\] \(id 1\): the segmentation \[\] is no mask"):
        evaluate_coco(write(tmp_path / "annotations.json", dataset), write_results(detections))


class TestTheFileOfNumbers:
    def test_holds_the_numbers_in_full(self, annotations, detections, write_results, tmp_path) -> None:
        out = tmp_path / "numbers.json"
        out.write_text("old")
        detections[0]["bbox"][0] += 3
        numbers = evaluate_coco(annotations, write_results(detections), per_category=True, out=out)
        assert json.loads(out.read_text()) == numbers
        assert {path.name for path in tmp_path.iterdir()} == {"annotations.json", "results.json", "numbers.json"}

    @pytest.mark.parametrize(
        ("name", "fault"),
        [
            ("none/numbers.json", "does not exist"),
            ("results.json/numbers.json", "does not exist"),
            ("folder", "is a folder"),
            ("results.json", "from which it would be made"),
            ("none/../annotations.json", "from which it would be made"),
        ],
    )
    def test_must_be_writable_before_anything_is_read(self, write_results, tmp_path, name, fault) -> None:
        (tmp_path / "folder").mkdir()
        annotations = write(tmp_path / "annotations.json", "not COCO, which would be said if it was read")
        with pytest.raises(DestinationError, match=fault):
            evaluate_coco(annotations, write_results([]), out=tmp_path / name)

    def test_must_not_lie_in_a_locked_folder(self, annotations, write_results, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path / "locked")  # root may write anywhere
        (tmp_path / "locked").mkdir()
        with pytest.raises(DestinationError, match="may not be written to"):
            evaluate_coco(annotations, write_results([]), out=tmp_path / "locked/numbers.json")

    def test_holds_any_name_of_a_category(self, dataset, detections, write_results, tmp_path) -> None:
        dataset["categories"][0]["name"] = "gro\u00df \ud800"
        annotations, out = write(tmp_path / "annotations.json", dataset), tmp_path / "numbers.json"
        numbers = evaluate_coco(annotations, write_results(detections), per_category=True, out=out)
        assert json.loads(out.read_text()) == numbers

    def test_is_not_made_for_bad_input(self, annotations, tmp_path) -> None:
        with pytest.raises(ResultsError):
            evaluate_coco(annotations, tmp_path / "none.json", out=tmp_path / "numbers.json")
        assert list(tmp_path.iterdir()) == [annotations]


class TestTheTable:
    def test_has_a_row_for_each_number_and_a_column_for_each_metric(self, annotations, write_results) -> None:
        lines = format_table(evaluate_coco(annotations, write_results([]))).splitlines()
        assert lines[0].split() == ["bbox", "segm"]
        assert [line.split()[0] for line in lines[1:]] == NAMES
        assert lines[1].split() == ["mAP", "0.000", "0.000"]
        assert lines[6].split() == ["mAP_l", "-1.000", "-1.000"]
        assert len({len(line) for line in lines}) == 1

    def test_shows_only_the_metrics_that_there_are(self, annotations, detections, write_results) -> None:
        table = format_table(evaluate_coco(annotations, write_results(detections), ["segm"]))
        assert "bbox" not in table
        assert table.splitlines()[2].split() == ["mAP_50", "1.000"]

    def test_ends_with_the_categories_when_asked(self, annotations, detections, write_results) -> None:
        numbers = evaluate_coco(annotations, write_results(detections[1:]), per_category=True)
        lines = [line.split() for line in format_table(numbers).splitlines()]
        assert lines[13:] == [["cat_precision", "1.000", "1.000"], ["dog_precision", "0.505", "0.505"]]
