from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ce_mm.backbones import CEResNet

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.glob("*/*.py") if p.parent.name != "_base_")


def read(name):
    return Config.fromfile(CONFIGS / name)


def milestones(cfg):
    schedulers = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
    (steps,) = (s for s in schedulers if s.type == "MultiStepLR")
    return list(steps.milestones), steps.gamma


@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds_a_model_with_a_ce_backbone(name):
    cfg = read(name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    assert isinstance(model.backbone, CEResNet)
    assert cfg.custom_imports.imports == ["ce_mm"]


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_imagenet_follows_the_paper_s_schedule(depth):
    cfg = read(f"imagenet/ce-resnet{depth}_8xb32_in1k.py")
    assert cfg.train_cfg.max_epochs == 100
    assert milestones(cfg) == ([30, 60, 90], 0.1)
    optimizer = {k: cfg.optim_wrapper.optimizer[k] for k in ("type", "lr", "momentum", "weight_decay")}
    assert optimizer == dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4)
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (32, 256)
    assert cfg.model.head.loss == dict(type="LabelSmoothLoss", label_smooth_val=0.1, loss_weight=1.0)
    assert (cfg.model.backbone.depth, cfg.model.head.num_classes) == (depth, 1000)


@pytest.mark.parametrize("depth", [50, 101])
def test_mask_rcnn_follows_the_paper_s_schedule(depth):
    cfg = read(f"coco/mask-rcnn_ce-r{depth}_fpn_2x_coco.py")
    assert cfg.train_cfg.max_epochs == 24
    assert milestones(cfg) == ([16, 22], 0.1)
    assert cfg.optim_wrapper.optimizer == dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4)
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (2, 16)
    assert (cfg.model.type, cfg.model.backbone.depth) == ("MaskRCNN", depth)
    assert cfg.model.backbone.init_cfg.type == "Pretrained"
