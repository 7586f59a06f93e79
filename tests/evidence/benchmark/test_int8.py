"""int8 by one command: the same figure in each row, the files smaller, the times over those of float32."""
import json
import logging
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ce_mm.datasets.shapes import make_shapes
from ce_mm.export import exporting
from ce_mm.export.check import random_pictures
from ce_mm.launching.config import read_config
from tools.evidence.benchmark import int8

CONFIG = f"""
_base_ = [{str(Path(__file__).resolve().parents[3] / "configs/shapes/ce-resnet18_shapes.py")!r}]
model = dict(
    backbone=dict(_delete_=True, type="CEVGG", depth=11, norm_cfg=dict(type="BN")), head=dict(in_channels=512)
)
"""


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A classifier of generated shapes that is quick to export, as config and checkpoint; its folder is the current."""
    monkeypatch.chdir(tmp_path)
    make_shapes(tmp_path / "data/shapes", num_train=1, num_val=1, num_crops=60)
    (tmp_path / "config.py").write_text(CONFIG)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(Config.fromfile("config.py").model)
    torch.save(model.state_dict(), "weights.pth")
    yield "config.py", "weights.pth"
    logging.disable(logging.NOTSET)


def test_every_kind_is_evaluated_weighed_and_timed(trained, monkeypatch):
    monkeypatch.setattr(exporting, "random_pictures", lambda channels: random_pictures(channels, count=1))
    assert int8.main([*trained, "--out", "results", "--warmup", "0", "--rounds", "2"]) == 0
    (record,) = json.loads(Path("results/int8.json").read_text())["records"].values()
    table = record["table"]
    assert list(table) == [
        "PyTorch, float32", "float32", "int8, dynamic", "int8, static", "int8, static, CE in float32",
    ]  # fmt: skip
    assert table["float32"]["value"] == table["PyTorch, float32"]["value"]
    assert {row["metric"] for row in table.values()} == {"accuracy/top1"}
    megabytes = {name: row["megabytes"] for name, row in table.items() if "megabytes" in row}
    assert megabytes.pop("float32") > 3 * max(megabytes.values())
    assert table["float32"]["ratio"] == 1
    assert all(table[name]["ms"] > 0 for name in megabytes)
    page = Path("results/int8.md").read_text()
    assert f"| int8, static | MB | {megabytes['int8, static']:.2f} |" in page
    assert "| PyTorch, float32 | MB" not in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.py", "absent.pth"], "absent.py: there is no such file"),
        (["c.py", "c.pth", "--rounds", "1"], "--rounds must be at least 2, got 1"),
    ],
)
def test_bad_input_ends_with_one_line(capsys, tmp_path, arguments, said):
    assert int8.main([*arguments, "--out", str(tmp_path)]) == 2
    logging.disable(logging.NOTSET)
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_ranges_come_from_the_data_set_inside_others(trained):
    base = Path("config.py").read_text()
    inside = "train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=2, dataset={}))\n"
    around = "dict(type='ConcatDataset', datasets=[])"
    for name, dataset in dict(repeated="_base_.train_dataloader.dataset", joined=around).items():
        Path(f"{name}.py").write_text(base + inside.format(dataset))
    plain, repeated = (int8._training_pictures(read_config(name), 20) for name in ("config.py", "repeated.py"))
    assert all(map(torch.equal, plain, repeated))
    with pytest.raises(ValueError, match="train_dataloader: expected one data set with a pipeline, got ConcatDataset"):
        int8._training_pictures(read_config("joined.py"), 20)
