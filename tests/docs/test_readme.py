"""README's example of CE in a detector of mmdet's: what it sets makes CE learn."""
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ce_mm.layers import CENorm

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture
def backbone(tmp_path):
    """The backbone of that example, without the file that it starts from."""
    (example,) = re.findall(r"```python\n(_base_ = \"mmdet::.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    config = tmp_path / "retinanet.py"
    config.write_text(example, encoding="utf-8")
    settings = Config.fromfile(config).model.backbone
    assert settings.init_cfg.checkpoint == "torchvision://resnet50"
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(settings | dict(init_cfg=None))


def test_every_average_of_ce_moves_in_training(backbone):
    layers = [module for module in backbone.train().modules() if isinstance(module, CENorm)]
    before = [(m.bd.running_whitening.clone(), m.ir.running_inv_std_scale.clone()) for m in layers]
    backbone(torch.randn(2, 3, 64, 64))
    assert len(layers) == 14
    for layer, (whitening, inv_std_scale) in zip(layers, before, strict=True):
        assert not torch.equal(layer.bd.running_whitening, whitening)
        assert not torch.equal(layer.ir.running_inv_std_scale, inv_std_scale)
