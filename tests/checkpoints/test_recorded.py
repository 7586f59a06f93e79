"""The config recorded in a checkpoint is read as data, and never run."""
from pathlib import Path

import pytest
from mmengine.config import Config

from ce_mm.checkpoints.recorded import holds_only, recorded_model


def recorded(text):
    return recorded_model(dict(meta=dict(cfg=text)))


def test_what_mmengine_records_comes_back():
    model = dict(backbone=dict(type="CEResNet", depth=18, out_indices=(0, 1), ce_cfg=None, list=[1.5, -2, "a", True]))
    text = Config(dict(a=1, model=model, other=dict(type="b"))).pretty_text
    assert recorded(text) == model


def test_so_does_that_of_the_demo():
    config = Config.fromfile(Path(__file__).resolve().parents[2] / "configs/shapes/ce-resnet18_shapes.py")
    assert recorded(config.pretty_text) == config.model.to_dict()


@pytest.mark.parametrize("text", [
    "model = __import__('os').system('false')", "model = dict(a=open('x', 'w'))", "model = [1]", "a = 1", "a (",
    "model = dict(**{'a': 1}, b=x)", "model = " + "(" * 1000, "model = dict(dict(a=1))", None, 3,
    "model = dict(a={[1]: 2})", "\0",
], ids=str)  # fmt: skip
def test_anything_else_is_no_config(text):
    assert recorded(text) is None


@pytest.mark.parametrize("checkpoint", [{}, dict(meta=None), dict(meta=[]), dict(meta={})])
def test_a_checkpoint_without_one_has_none(checkpoint):
    assert recorded_model(checkpoint) is None


@pytest.mark.parametrize(("text", "only"), [
    ("a = dict(b=[1, 2])", True), ("# c\na = dict(b=[1, 2])\n", True), ("a = dict(b=[1, 2])\nimport os", False),
    ("a = dict(b=[1, 3])", False), ("a = dict(b=print())", False), ("a = dict(b=[1, 2])\nb = 1", False), ("(", False),
])  # fmt: skip
def test_a_text_is_this_data_and_no_more(text, only):
    assert holds_only(text, dict(a=dict(b=[1, 2]))) is only
