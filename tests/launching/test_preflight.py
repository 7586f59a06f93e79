"""What is looked at before a run: each missing or wrong piece is one error; what lies elsewhere is left alone."""
import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ce_mm.launching.config import PreflightError
from ce_mm.launching.preflight import check

COCO = {
    "images": [{"id": 1, "file_name": "1.png", "width": 8, "height": 8}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}],
    "categories": [{"id": 1, "name": "cat"}],
}
MODEL = dict(type="ImageClassifier", backbone=dict(type="LeNet5", num_classes=2), head=dict(type="ClsHead"))


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """A working folder with a COCO set and a checkpoint that fits MODEL."""
    monkeypatch.chdir(tmp_path)
    Path("data/pictures").mkdir(parents=True)
    Path("data/objects.json").write_text(json.dumps(COCO))
    Path("data/names.txt").write_text("1.png 0\n")
    torch.save({"state_dict": state_dict()}, "fits.pth")


def state_dict():
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return MODELS.build(MODEL).state_dict()


def coco_set(**changes):
    return {
        "type": "mmdet.CocoDataset", "data_root": "data/", "ann_file": "objects.json",
        "data_prefix": {"img": "pictures/"}, **changes,
    }


def config(**changes):
    loader = dict(dataset=coco_set())
    evaluator = dict(type="mmdet.CocoMetric", ann_file="data/objects.json")
    return Config(
        dict(
            default_scope="mmpretrain", model=MODEL, train_cfg={}, val_cfg={}, test_cfg={}, train_dataloader=loader,
            val_dataloader=loader, test_dataloader=loader, val_evaluator=evaluator, test_evaluator=[evaluator],
        )
        | changes
    )


def train_args(**changes):
    return Namespace(**{"config": "config.py", "cfg_options": None, "resume": None, "work_dir": None, **changes})


def check_training(cfg, **args):
    check("train", cfg, train_args(**args))


def check_testing(cfg, checkpoint="fits.pth"):
    check("test", cfg, Namespace(config="config.py", checkpoint=checkpoint, cfg_options=None))


def test_a_complete_run_passes():
    check_training(config())
    check_testing(config())


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (coco_set(ann_file="absent.json"), "data/absent.json: no such file"),
        (coco_set(ann_file="names.txt"), "data/names.txt: not JSON"),
        (coco_set(data_prefix={"img": "absent/"}), "data/absent/: there is no such picture folder"),
        (coco_set(data_root="absent", ann_file=""), "absent/pictures/: there is no such picture folder"),
        (dict(type="CustomDataset", data_root="data", ann_file="absent.txt"), "data/absent.txt: there is no such anno"),
        (dict(type="CustomDataset", data_prefix="absent"), "absent: there is no such picture folder"),
        (dict(type="ImageNet", data_root="absent", split="train"), "absent/: there is no such picture folder"),
        (dict(type="CIFAR10", data_root="absent", download=False), "absent/: there is no such picture folder"),
        (dict(type="RepeatDataset", dataset=coco_set(ann_file="absent.json")), "data/absent.json: no such file"),
        (dict(type="ConcatDataset", datasets=[coco_set(), coco_set(data_prefix={"img": "absent"})]), "data/absent: "),
    ],
)
def test_data_that_is_not_there_is_named_with_its_dataloader(dataset, said):
    cfg = config(test_dataloader=dict(dataset=dataset))
    check_training(cfg)  # does not use that dataloader
    with pytest.raises(PreflightError) as refusal:
        check_testing(cfg)
    assert said in str(refusal.value)
    assert str(refusal.value).startswith("test_dataloader: ")


def test_a_dataset_that_nobody_registered_is_named():
    with pytest.raises(PreflightError, match="dataset type 'UnheardOf' is unknown in mmpretrain"):
        check_testing(config(test_dataloader=dict(dataset=dict(type="UnheardOf"))))


@pytest.mark.parametrize(
    "dataset",
    [
        coco_set(data_root="s3://bucket/"),
        coco_set(data_root="absent", backend_args=dict(backend="petrel")),
        dict(type="CustomDataset", data_root="data", data_prefix="pictures", ann_file="names.txt"),
        dict(type="CustomDataset", data_root="data/pictures"),
        dict(type="CIFAR10", data_root="absent"),
    ],
)
def test_data_that_is_elsewhere_or_downloads_itself_is_left_to_upstream(dataset):
    check_testing(config(test_dataloader=dict(dataset=dataset)))


def test_the_annotations_of_an_evaluator_are_looked_at():
    with pytest.raises(PreflightError, match=r"^test_evaluator: absent\.json: no such file"):
        check_testing(config(test_evaluator=dict(type="CocoMetric", ann_file="absent.json")))


def test_validation_counts_only_where_it_takes_place():
    absent = dict(dataset=coco_set(ann_file="absent.json"))
    with pytest.raises(PreflightError, match=r"^val_dataloader: "):
        check_training(config(val_dataloader=absent))
    check_training(config(val_dataloader=absent, val_cfg=None))
    check_training(config(val_dataloader=absent), no_validate=True)


def test_bad_pictures_may_be_left_out_of_a_training_but_not_of_its_figures():
    skipping = dict(dataset=coco_set(pipeline=[dict(type="LoadImage", on_error="skip")]))
    check_training(config(train_dataloader=skipping))
    with pytest.raises(PreflightError, match=r"^val_dataloader: LoadImage's on_error='skip'"):
        check_training(config(val_dataloader=skipping))
    with pytest.raises(PreflightError, match=r"^test_dataloader: LoadImage's on_error='skip'"):
        check_testing(config(test_dataloader=skipping))


def test_options_of_the_command_line_count():
    check_training(config(load_from="absent.pth"), cfg_options={"load_from": "fits.pth"})
    with pytest.raises(PreflightError, match="--cfg-options"):
        check_training(config(), cfg_options={"test_evaluator.5.ann_file": "a.json"})


@pytest.mark.parametrize(
    ("cfg", "args", "setting"),
    [
        (dict(load_from="absent.pth"), {}, "load_from"),
        ({}, dict(resume="absent.pth"), "--resume"),
        (dict(model=MODEL | dict(init_cfg=[dict(type="Pretrained", checkpoint="absent.pth")])), {}, "init_cfg"),
    ],
)
def test_a_checkpoint_to_start_from_must_exist(cfg, args, setting):
    with pytest.raises(PreflightError, match=rf"^{setting}.*absent\.pth"):
        check_training(config(**cfg), **args)


def test_resuming_by_itself_reads_the_last_checkpoint_or_none():
    Path("work_dirs/config").mkdir(parents=True)
    check_training(config(), resume="auto")
    Path("work_dirs/config/last_checkpoint").write_text("cut.pth")
    Path("cut.pth").write_bytes(Path("fits.pth").read_bytes()[:500])
    for resumed in (dict(resume="auto"), dict(resume="auto", work_dir="work_dirs/config")):
        with pytest.raises(PreflightError, match=r"^--resume: cut\.pth: "):
            check_training(config(load_from="absent.pth"), **resumed)
    with pytest.raises(PreflightError, match=r"^--resume: cut\.pth: "):
        check_training(config(resume=True))


def test_checkpoints_that_upstream_fetches_are_left_to_it():
    remote = "https://example.org/a.pth"
    check_training(config(load_from=remote))
    check_training(config(model=MODEL | dict(init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18"))))
    check_testing(config(), remote)


def test_a_model_that_cannot_be_built_is_an_error_with_the_place():
    cfg = config(model=MODEL | dict(backbone=dict(type="ResNet", depth=7)))
    with pytest.raises(PreflightError, match=r"cannot be built: KeyError: .*resnet\.py, line \d+"):
        check_training(cfg)


def test_weights_from_a_parallel_run_and_without_batch_counters_fit():
    weights = {f"module.{name}": value for name, value in state_dict().items()}
    torch.save(weights, "parallel.pth")
    check_testing(config(), "parallel.pth")
    norms = MODEL | dict(backbone=dict(type="ResNet", depth=18))
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        weights = MODELS.build(norms).state_dict()
    torch.save({name: value for name, value in weights.items() if "num_batches_tracked" not in name}, "old.pth")
    check_testing(config(model=norms), "old.pth")


def test_weights_that_do_not_fit_are_counted_and_the_first_of_each_kind_is_named():
    weights = state_dict()
    first, second, *_, last = list(weights)
    del weights[first], weights[second]
    weights["new.weight"] = weights[last]
    weights[last] = torch.zeros(3, 5)
    torch.save({"state_dict": weights}, "other.pth")
    with pytest.raises(PreflightError) as refusal:
        check_testing(config(), "other.pth")
    assert str(refusal.value) == (
        f"other.pth does not fit the model of config.py: 2 missing keys (first: {first}), 1 unexpected keys (first: "
        f"new.weight), 1 weights of another shape (first: {last}, (3, 5) in the checkpoint, (2,) in the model); "
        "expected weights of the same architecture"
    )
