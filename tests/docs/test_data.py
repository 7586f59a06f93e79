"""The page on data: its configs train on folders laid out as it says, by its commands, in a folder of the user's.

What stands in: drawn shapes for the flowers and the fruit, small networks and images, one epoch. COCO, from which the
page takes a few images, is an annotation file of shapes. ImageNet's two layouts are read with three classes.
"""
import json
import shutil
from pathlib import Path

import pytest
from mmengine.registry import DATASETS, DefaultScope
from pages import blocks, commands

from ce_mm.__main__ import main
from ce_mm.datasets.shapes import make_shapes
from ce_mm.launching.config import read_config

PAGE = "docs/data.md"
SMALL = dict(
    fruit=[
        "model.backbone.depth=18", "model.backbone.base_channels=16", "model.backbone.stem_channels=16",
        "model.backbone.init_cfg=None", "model.neck.in_channels=[16,32,64,128]",
        "train_dataloader.dataset.pipeline.2.scale=(96,80)", "val_dataloader.dataset.pipeline.1.scale=(96,80)",
        "train_cfg.max_epochs=1",
    ],
    flowers=[
        "model.backbone.depth=18", "model.backbone.base_channels=16", "model.backbone.stem_channels=16",
        "model.head.in_channels=128", "train_dataloader.dataset.pipeline.1.scale=32",
        "val_dataloader.dataset.pipeline.1.scale=32", "val_dataloader.dataset.pipeline.2.crop_size=32",
        "train_cfg.max_epochs=1",
    ],
)  # fmt: skip
"""What makes a training of a config small."""
LOADERS = [
    "train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False",
    "val_dataloader.num_workers=0", "val_dataloader.persistent_workers=False",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A user's folder with the page's configs, and the data that they name."""
    folder = tmp_path_factory.mktemp("mine")
    for _, code in blocks(PAGE):
        name = code.partition("\n")[0].removeprefix("# ")
        (folder / name).write_text(code, encoding="utf-8")
    shapes = make_shapes(folder / "shapes", num_train=4, num_val=2, num_crops=36)
    for split in ("train", "val"):
        for kind, name in (("circle", "daisy"), ("cross", "rose"), ("ring", "tulip")):
            shutil.copytree(shapes / "crops" / split / kind, folder / "data/flowers" / split / name)
        annotations = json.loads((shapes / f"annotations/{split}.json").read_text())
        for category in annotations["categories"]:
            category["name"] = {"circle": "apple", "cross": "pear"}.get(category["name"], category["name"])
        (folder / "data/fruit/annotations").mkdir(parents=True, exist_ok=True)
        (folder / f"data/fruit/annotations/{split}.json").write_text(json.dumps(annotations))
        shutil.copytree(shapes / split, folder / "data/fruit" / split)
    (folder / "data/coco/annotations").mkdir(parents=True)
    many = make_shapes(folder / "many", num_train=200, num_val=1, num_crops=6)
    shutil.copy(many / "annotations/train.json", folder / "data/coco/annotations/instances_train2017.json")
    shutil.rmtree(many)
    shutil.rmtree(shapes)
    return folder


@pytest.fixture
def run(place, as_in_a_new_process, monkeypatch):
    """Runs a command of the page in that folder; a training is made small, and ends where a whole one would."""
    monkeypatch.chdir(place)

    def run(words):
        name = Path(words[1]).stem
        if words[0] in ("train", "test"):
            epochs = read_config(words[1]).train_cfg.max_epochs
            words = [*words, "--cfg-options", *SMALL[name], *LOADERS]
            if words[0] == "test":
                words += [option.replace("val_", "test_") for option in (*SMALL[name], *LOADERS) if "val_" in option]
        assert main(words) == 0
        if words[0] == "train":
            Path(f"work_dirs/{name}/epoch_1.pth").rename(f"work_dirs/{name}/epoch_{epochs}.pth")

    return run


def test_its_commands_run_in_their_order_and_leave_nothing_elsewhere(run, place, capfd):
    for program, *words in commands(PAGE):
        assert program == "ce_mm"
        run(words)
    printed = capfd.readouterr().out
    assert "apple" in printed and "pear" in printed and "ring" not in printed.rpartition("bbox")[2]
    assert len(json.loads((place / "work_dirs/eight.json").read_text())["images"]) == 8
    there = {"flowers.py", "fruit.py", "skipping.py", "data", "work_dirs"}
    assert {path.name for path in place.iterdir()} == there


def test_a_detector_goes_on_past_a_bad_image(place, as_in_a_new_process, monkeypatch):
    monkeypatch.chdir(place)
    first = read_config("fruit.py").train_dataloader.dataset.data_prefix.img
    bad = place / "data/fruit" / first / "000001.png"
    kept = bad.read_bytes()
    bad.write_bytes(b"")
    try:
        cfg = read_config("skipping.py")
        with DefaultScope.overwrite_default_scope("mmdet"):
            dataset = DATASETS.build(cfg.train_dataloader.dataset)
            assert [dataset[index]["inputs"].shape[0] for index in range(len(dataset))] == [3] * len(dataset)
    finally:
        bad.write_bytes(kept)


@pytest.mark.parametrize("layout", ["folders", "list"])
def test_imagenet_is_read_in_both_layouts(layout, tmp_path, as_in_a_new_process, place):
    root = tmp_path / "imagenet"
    pictures = sorted((place / "data/flowers/val").glob("*/*.png"))
    classes = sorted({path.parent.name for path in pictures})
    for path in pictures:
        target = root / "val" / (path.parent.name if layout == "folders" else "") / f"{path.parent.name}_{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    labels = [classes.index(path.parent.name) for path in pictures]
    if layout == "list":
        lines = [f"{path.parent.name}_{path.name} {label}" for path, label in zip(pictures, labels, strict=True)]
        (root / "meta").mkdir()
        (root / "meta/val.txt").write_text("\n".join(lines) + "\n")
    settings = read_config("ce_mm::imagenet/ce-resnet50_8xb32_in1k.py").val_dataloader.dataset
    assert (settings.data_root, settings.split) == ("data/imagenet", "val")
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        dataset = DATASETS.build(settings | dict(data_root=str(root), metainfo=dict(classes=classes)))
    assert [dataset.get_data_info(index)["gt_label"] for index in range(len(dataset))] == labels


@pytest.mark.parametrize("name", ["coco/mask-rcnn_ce-r50_fpn_2x_coco", "cifar10/ce-vgg16bn_1xb256_cifar10"])
def test_the_folders_are_those_of_the_configs(name):
    dataset = read_config(f"ce_mm::{name}.py").train_dataloader.dataset
    assert dataset.data_root.rstrip("/") == f"data/{name.partition('/')[0]}"
