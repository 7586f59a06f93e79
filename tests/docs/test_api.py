"""The page on the Python API, run from top to bottom in a checkout with the demo's files, which stays clean.

The demo's data are fewer, and its weights are random.
"""
import importlib
import re
from types import SimpleNamespace

import pytest
import torch
from pages import blocks, commands, run_block, text_of
from weights import write_checkpoint

from ce_mm.__main__ import main
from ce_mm.datasets.shapes import make_shapes
from ce_mm.layers import CENorm

PAGE = "docs/api.md"
CLASSES = ("circle", "cross", "ring", "square", "star", "triangle")


@pytest.fixture(scope="module")
def demo(checkout):
    """The checkout after a demo."""
    make_shapes(checkout / "data/shapes", num_train=1, num_val=2, num_crops=12)
    for config, run, epoch in (("ce-resnet18", "pretrain", 6), ("mask-rcnn_ce-r18_fpn", "detector", 3)):
        path = checkout / f"work_dirs/shapes/{run}/epoch_{epoch}.pth"
        write_checkpoint(f"ce_mm::shapes/{config}_shapes.py", path, classes=CLASSES)
    return checkout


@pytest.fixture
def names(demo, as_in_a_new_process, monkeypatch):
    """What the page's python blocks define."""
    monkeypatch.chdir(demo)
    torch.manual_seed(0)
    found = {}
    for above, code in blocks(PAGE):
        run_block(PAGE, above, code, found)
    return SimpleNamespace(**found)


def test_its_code_gives_what_it_says(names):
    count = len(names.found.scores)
    assert names.found.bboxes.shape == (count, 4) and names.found.masks.shape == (count, 160, 192)
    assert set(names.prediction) == {"bboxes", "scores", "labels", "masks"}
    assert names.result["pred_class"] in CLASSES
    assert [tuple(y.shape) for y in names.maps] == [(2, 64, 16, 16), (2, 128, 8, 8), (2, 256, 4, 4), (2, 512, 2, 2)]
    assert list(names.report.layers) == ["1"]
    assert set(names.weights) and not any(isinstance(module, CENorm) for module in names.folded.modules())


def test_its_command_writes_an_image_and_a_file_for_each(demo, as_in_a_new_process, monkeypatch):
    monkeypatch.chdir(demo)
    ((_, *words),) = commands(PAGE)
    assert main(words) == 0
    assert {path.suffix for path in (demo / "work_dirs/predictions").iterdir()} == {".jpg", ".json"}


def test_the_functions_of_its_table_are_there():
    rows = re.findall(r"^\| [^|]+ \| `(ce_mm\.[\w.]+)` \|", text_of(PAGE), re.MULTILINE)
    assert len(rows) == 7
    for name in rows:
        module, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function))


def test_the_defaults_of_its_table_are_the_layer_s():
    layer = CENorm(64)
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text_of(PAGE), re.MULTILINE))
    assert rows["group_size"] == str(layer.bd.group_size)
    assert rows["iterations"] == str(layer.bd.iterations)
    assert rows["reduction"] == str(64 // layer.ir.fc1.out_features)
    assert rows["branches"] == f"`{layer.branches}`".replace("'", '"')
    assert (rows["max_pool"], rows["sync"], rows["correction"]) == (f"`{layer.bd.max_pool}`", f"`{layer.sync}`", "0")
