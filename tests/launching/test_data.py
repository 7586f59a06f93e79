"""Data in front of a run: what is missing is named, what lies elsewhere or is not needed is left alone."""
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.fileio import BaseStorageBackend, register_backend
from small_run import COCO, coco_set, config

from ce_mm.launching.config import PreflightError
from ce_mm.launching.data import check_data

LOAD = dict(type="LoadImageFromFile")
pytestmark = pytest.mark.usefixtures("complete_run")


def check(**changes):
    check_data("test", config(**changes))


def check_set(dataset):
    check(test_dataloader=dict(dataset=dataset))


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (coco_set(ann_file="absent.json"), "data/absent.json: there is no such annotation file"),
        (coco_set(ann_file="names.txt"), "data/names.txt: not JSON"),
        (coco_set(type=CocoDataset, ann_file="names.txt"), "data/names.txt: not JSON"),
        (coco_set(type="mmdet.CityscapesDataset", ann_file="names.txt"), "data/names.txt: not JSON"),
        (coco_set(data_prefix={"img": "absent/"}), "data/absent/: there is no such picture folder"),
        (coco_set(data_root="absent", ann_file=""), "absent/pictures/: there is no such picture folder"),
        (dict(type="CustomDataset", data_root="data", ann_file="absent.txt"), "data/absent.txt: there is no such anno"),
        (dict(type="CustomDataset", data_prefix="absent"), "absent: there is no such picture folder"),
        (dict(type="ImageNet", data_root="absent", split="train"), "absent/: there is no such picture folder"),
        (dict(type="CIFAR10", data_root="absent", download=False), "absent/: there is no such picture folder"),
        (dict(type="RepeatDataset", dataset=coco_set(ann_file="absent.json"), times=2), "data/absent.json: there is"),
        (dict(type="ConcatDataset", datasets=[coco_set(), coco_set(data_prefix={"img": "absent"})]), "data/absent: "),
    ],
)
def test_data_that_is_not_there_is_named_with_its_dataloader(dataset, said):
    with pytest.raises(PreflightError) as refusal:
        check_set(dataset)
    assert said in str(refusal.value)
    assert str(refusal.value).startswith("test_dataloader: ") and "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["UnheardOf", "mmdet.UnheardOf"])
def test_a_dataset_that_nobody_registered_is_named(kind):
    with pytest.raises(PreflightError, match=f"^test_dataloader: the type '{kind}' is unknown in mmpretrain"):
        check_set(dict(type=kind))


@pytest.mark.parametrize(
    "dataset",
    [
        coco_set(data_root="s3://bucket/"),
        coco_set(data_root="absent", backend_args=dict(backend="petrel")),
        coco_set(ann_file=Path("data/objects.json").name, backend_args=None),
        dict(type="CustomDataset", data_root="data", data_prefix="pictures", ann_file="names.txt"),
        dict(type="CustomDataset", data_root="data/pictures"),
        dict(type="CIFAR10", data_root="absent"),
    ],
)
def test_data_that_is_elsewhere_or_downloads_itself_is_left_to_upstream(dataset):
    check_set(dataset)


def make_picture():
    cv2.imwrite("data/pictures/1.png", np.zeros((8, 8, 3), np.uint8))
    return str(Path("data/pictures/1.png").absolute())


def test_a_folder_that_no_sample_needs_may_be_missing():
    path = make_picture()
    Path("data/absolute.json").write_text(json.dumps(COCO | {"images": [COCO["images"][0] | {"file_name": path}]}))
    check_set(coco_set(ann_file="absolute.json", data_prefix=dict(img="absent/"), pipeline=[]))
    Path("names.txt").write_text(f"{path} 0\n")
    check_set(dict(type="CustomDataset", ann_file="names.txt", data_prefix="absent", pipeline=[LOAD]))


def test_pictures_that_another_backend_brings_are_not_looked_for_in_folders():
    brought = dict(type="LoadImageFromFile", backend_args=dict(backend="BringsBlack"))
    @register_backend("BringsBlack", force=True)
    class BringsBlack(BaseStorageBackend):
        def get(self, path):
            return cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()

        def get_text(self, path):
            raise NotImplementedError

    check_set(coco_set(data_prefix=dict(img="archive/"), pipeline=[brought]))
    with pytest.raises(PreflightError, match="data/archive/: there is no such picture folder"):
        check_set(coco_set(data_prefix=dict(img="archive/")))


def test_only_what_reads_a_file_as_coco_does_asks_for_coco():
    @DATASETS.register_module(force=True)
    class ReadsOtherwise(CocoDataset):
        def load_data_list(self):
            return []

    check_set(coco_set(type="mmdet.ReadsOtherwise", ann_file="names.txt"))


def test_a_home_folder_counts_where_upstream_expands_it(monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    make_picture()
    check_set(dict(type="CustomDataset", ann_file="~/data/names.txt", data_prefix="~/data/pictures", pipeline=[LOAD]))
    with pytest.raises(PreflightError, match=r"~/data/objects\.json: there is no such annotation file"):
        check_set(coco_set(data_root="~/data"))


def test_the_annotations_of_an_evaluator_are_looked_at():
    for kind in ("CocoMetric", "mmdet.CocoMetric", "mmdet.LVISMetric"):
        with pytest.raises(PreflightError, match=r"^test_evaluator: absent\.json: (there is )?no such"):
            check(test_evaluator=dict(type=kind, ann_file="absent.json"))
    check(test_evaluator=dict(type="mmdet.CocoMetric", ann_file="absent.json", backend_args=dict(backend="petrel")))


def test_bad_pictures_may_be_left_out_of_a_training_but_not_of_its_figures():
    skipping = dict(dataset=coco_set(pipeline=[dict(type="LoadImage", on_error="skip")]))
    check_data("train", config(train_dataloader=skipping))
    for part in ("val", "test"):
        with pytest.raises(PreflightError, match=rf"^{part}_dataloader: LoadImage's on_error='skip'"):
            check_data(part, config(val_dataloader=skipping, test_dataloader=skipping))


def test_a_training_set_of_which_nothing_is_left_is_named():
    Path("data/background.json").write_text(json.dumps(COCO | dict(annotations=[])))
    dataset = coco_set(ann_file="background.json")
    check_data("train", config(train_dataloader=dict(dataset=dataset)))
    filtered = dict(dataset=dataset | dict(filter_cfg=dict(filter_empty_gt=True)))
    with pytest.raises(PreflightError, match=r"^train_dataloader: data/background\.json: there is no object in it"):
        check_data("train", config(train_dataloader=filtered))


def test_pictures_without_annotations_are_enough_to_format_results():
    pictures = {key: COCO[key] for key in ("images", "categories")}
    Path("data/pictures.json").write_text(json.dumps(pictures))
    check(
        test_dataloader=dict(dataset=coco_set(ann_file="pictures.json", test_mode=True)),
        test_evaluator=dict(type="mmdet.CocoMetric", ann_file="data/pictures.json", format_only=True),
    )
