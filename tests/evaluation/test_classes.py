"""Which category a label stands for: the same as in mmdet's CocoMetric, or a refusal."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch

from ce_mm.evaluation import ResultsError, evaluate_coco

CONFIG = """
default_scope = 'mmdet'
test_dataloader = dict(dataset=dict(type='RepeatDataset', times=1, dataset=dict(
    type='CocoDataset', ann_file='none.json', metainfo=dict(classes=('cat', 'dog')), pipeline=[dict(type='Unknown')])))
"""


@pytest.fixture
def samples(detections) -> list[dict]:
    """The objects themselves, labelled 0 for dogs and 1 for cats, as in the file, and some of them moved."""
    samples = []
    for image_id in (1, 2):
        entries = [entry for entry in detections[:3] if entry["image_id"] == image_id]
        boxes = torch.tensor([entry["bbox"] for entry in entries])
        boxes[:, 2:] += boxes[:, :2] + 4
        prediction = {
            "bboxes": boxes,
            "scores": torch.tensor([entry["score"] for entry in entries]),
            "labels": torch.tensor([{7: 0, 3: 1}[entry["category_id"]] for entry in entries]),
        }
        samples.append({"img_id": image_id, "ori_shape": (80, 100), "pred_instances": prediction})
    return samples


@pytest.fixture
def results(tmp_path, samples) -> Path:
    path = tmp_path / "results.pkl"
    path.write_bytes(pickle.dumps(samples))
    return path


@pytest.fixture
def with_one_more_in_front(dataset, tmp_path) -> Path:
    """The annotation file as some exporters write it, with an object of that category."""
    dataset["categories"].insert(0, {"id": 0, "name": "things"})
    dataset["annotations"].append(dataset["annotations"][0] | {"id": 9, "category_id": 0, "bbox": [60, 1, 20, 20]})
    path = tmp_path / "more.json"
    path.write_text(json.dumps(dataset))
    return path


@pytest.mark.parametrize("classes", [("dog", "cat"), ["cat", "dog"]])
def test_the_figure_is_that_of_mmdet(with_one_more_in_front, results, samples, classes) -> None:
    metrics = pytest.importorskip("mmdet.evaluation.metrics", exc_type=ImportError)
    judge = metrics.CocoMetric(str(with_one_more_in_front), "bbox")
    judge.dataset_meta = {"classes": classes}
    judge.process({}, copy.deepcopy(samples))
    expected = judge.evaluate(len(samples))
    numbers = evaluate_coco(with_one_more_in_front, results, ["bbox"], classes=classes)
    assert 0.3 < expected["coco/bbox_mAP"] < 1
    assert {key: round(numbers[key], 3) for key in expected} == expected


def test_unnamed_labels_of_other_categories_are_refused(with_one_more_in_front, results) -> None:
    with pytest.raises(ResultsError, match=r"labels end at 1, the annotation file has 3 categories.*--classes"):
        evaluate_coco(with_one_more_in_front, results, ["bbox"])


def test_unnamed_labels_go_on_where_the_counts_agree_and_it_is_said(annotations, results, caplog) -> None:
    caplog.set_level("INFO", "ce_mm.evaluation")
    named = evaluate_coco(annotations, results, ["bbox"], classes=("dog", "cat"))
    assert not any("label i is taken for category i" in message for message in caplog.messages)
    assert evaluate_coco(annotations, results, ["bbox"]) == named
    assert any("label i is taken for category i of the 2" in message for message in caplog.messages)


def test_a_label_beyond_the_named_classes_is_refused(annotations, results) -> None:
    with pytest.raises(ResultsError, match="the label 1 is out of range"):
        evaluate_coco(annotations, results, ["bbox"], classes=["dog"])


def test_a_class_that_is_no_category_is_refused(annotations, results) -> None:
    with pytest.raises(ResultsError, match=r"1 of 2 classes .* \(the first: 'cow'\); expected names of its 2"):
        evaluate_coco(annotations, results, ["bbox"], classes=["dog", "cow"])


def test_only_the_named_classes_of_json_results_are_evaluated(annotations, detections, write_results) -> None:
    numbers = evaluate_coco(annotations, write_results(detections[1:2]), ["bbox"], classes=["cat"])
    assert numbers["coco/bbox_mAP"] == pytest.approx(1)


class TestAConfig:
    @pytest.fixture(autouse=True)
    def needs_mmdet(self) -> None:
        pytest.importorskip("mmdet", exc_type=ImportError)

    def test_names_the_classes_of_its_test_data_set(self, tmp_path) -> None:
        from ce_mm.evaluation.classes import read_classes

        (tmp_path / "config.py").write_text(CONFIG)
        assert read_classes(tmp_path / "config.py") == ("cat", "dog")

    def test_without_a_list_has_those_of_the_data_set_s_type(self) -> None:
        from ce_mm.evaluation.classes import read_classes

        configs = Path(__file__).parents[2] / "configs"
        classes = read_classes(configs / "coco/mask-rcnn_ce-r50_fpn_2x_coco.py")
        assert (len(classes), classes[0], classes[-1]) == (80, "person", "toothbrush")

    @pytest.mark.parametrize("text", ["model = dict()", "test_dataloader = dict(dataset=dict(type='None'))"])
    def test_that_names_none_is_an_error(self, tmp_path, text) -> None:
        from ce_mm.evaluation.classes import read_classes

        (tmp_path / "config.py").write_text(text)
        with pytest.raises(ValueError, match=r"config\.py: the classes of its test data set are unknown"):
            read_classes(tmp_path / "config.py")
