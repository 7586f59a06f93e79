"""The code of the page on deployment, run from top to bottom in a folder with the files that its commands write."""
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from ce_mm.export import export, exporting
from ce_mm.export.check import random_pictures

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/deployment.md"
# In place of the demo's classifier: quicker to export.
CONFIG = f"""
_base_ = [{str(ROOT / "configs/shapes/ce-resnet18_shapes.py")!r}]
model = dict(
    backbone=dict(_delete_=True, type="CEVGG", depth=11, norm_cfg=dict(type="BN")), head=dict(in_channels=512)
)
"""


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the page's python blocks define."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exporting, "random_pictures", lambda channels: random_pictures(channels, count=1))
    Path("config.py").write_text(CONFIG)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(Config.fromfile("config.py").model)
    classes = ("circle", "cross", "ring", "square", "star", "triangle")
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), "weights.pth")
    Image.new("L", (90, 70), 128).save("picture.png")
    text, found = PAGE.read_text(encoding="utf-8"), {}
    for kind, file in re.findall(r"--format (\S+) --out (ce-resnet18\S+)", text):
        export("config.py", "weights.pth", kind, Path(file))
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        above = text.count("\n", 0, block.start(1))  # so that an error names the line of the page
        exec(compile("\n" * above + block[1], str(PAGE), "exec"), found)
        found.setdefault("all scores", []).append(torch.as_tensor(found["scores"]))
    return found


def test_every_runtime_gives_the_same_scores_of_a_picture(names, capsys):
    first, *others = names["all scores"]
    assert first.shape == (1, 6) and len(others) == 2
    assert first.sum().item() == pytest.approx(1)
    for scores in others:
        torch.testing.assert_close(scores, first, rtol=1e-4, atol=1e-6)
    assert names["classes"][0] == "circle"
