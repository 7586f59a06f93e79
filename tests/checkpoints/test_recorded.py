"""The config recorded in a checkpoint is read as data, and never run."""
from pathlib import Path

import pytest
from mmengine.config import Config

from ce_mm.checkpoints.recorded import recorded_backbone


def recorded(text):
    return recorded_backbone(dict(cfg=text))


def test_what_mmengine_records_comes_back():
    model = dict(backbone=dict(type="CEResNet", depth=18, out_indices=(0, 1), ce_cfg=None, list=[1.5, -2, "a", True]))
    text = Config(dict(a=1, model=model, other=dict(type="b"))).pretty_text
    assert recorded(text) == model["backbone"]


def test_so_does_that_of_the_demo():
    config = Config.fromfile(Path(__file__).resolve().parents[2] / "configs/shapes/ce-resnet18_shapes.py")
    assert recorded(config.pretty_text) == config.model.backbone.to_dict()


@pytest.mark.parametrize("text", [
    "model = __import__('os').system('false')", "model = dict(a=open('x', 'w'))", "model = [1]", "a = 1", "a (",
    "model = dict(**{'a': 1}, b=x)", "model = " + "(" * 1000, "model = dict(dict(a=1))", None, 3,
    "model = dict(a={[1]: 2})", "\0",
    "model = dict(backbone=dict(a=open('x', 'w')))", "model = dict(backbone=[1])",
], ids=str)  # fmt: skip
def test_anything_else_is_no_config(text):
    assert recorded(text) == {}
