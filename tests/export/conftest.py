"""Classifiers and a detector as a config and a checkpoint, their weights and statistics away from starting values."""
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["circle", "cross", "ring", "square", "star", "triangle"]
DATA = "data_preprocessor = dict(num_classes=6)\n"
SMALL = {
    "resnet": "imagenet/ce-resnet18_8xb32_in1k.py",
    "mobilenet": "imagenet/ce-mobilenet-v2_8xb32_in1k.py",
    "shufflenet": "imagenet/ce-shufflenet-v2-0.5x_8xb128_in1k.py",
}
CHANGES = {
    "resnet": "backbone=dict(stem_channels=16, base_channels=16), head=dict(num_classes=6, in_channels=128)",
    "mobilenet": "backbone=dict(widen_factor=0.25), head=dict(num_classes=6, in_channels=1280)",
    "shufflenet": "head=dict(num_classes=6)",
}


def shaken(model):
    """A few random batches in training mode for all running statistics, then other γ, β, λ and linear layers."""
    generator = torch.Generator().manual_seed(0)
    model.train()
    with torch.no_grad():
        for _ in range(4):
            light, noise = (torch.randn(6, 3, size, size, generator=generator) for size in (1, 64))
            model.backbone(light + noise)
        for parameter in model.parameters():
            if parameter.dim() < 4:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.eval()
    return model


def make(folder, config):
    """Build the model of a config file, and save its weights in ``folder``: what the tool needs, and the model."""
    cfg = Config.fromfile(config)
    settings = cfg.model.copy()
    settings.backbone.init_cfg = None
    if "data_preprocessor" in cfg:
        settings.data_preprocessor = cfg.data_preprocessor
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = shaken(MODELS.build(settings))
    checkpoint = folder / f"{Path(config).stem}.pth"
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES))), checkpoint)
    return SimpleNamespace(config=str(config), checkpoint=str(checkpoint), model=model, folder=folder)


@pytest.fixture(scope="session")
def make_classifier(tmp_path_factory):
    """Make a classifier of a config of configs/, with lines of one's own below."""

    def classifier(base, lines=""):
        folder = tmp_path_factory.mktemp("classifier")
        config = folder / "config.py"
        config.write_text(f"_base_ = [{str(ROOT / 'configs' / base)!r}]\n{lines}")
        return make(folder, config)

    return classifier


@pytest.fixture(scope="session")
def small(make_classifier):
    """Small CE classifiers by name, each made once."""
    made = {}

    def classifier(name):
        if name not in made:
            made[name] = make_classifier(SMALL[name], f"{DATA}model = dict({CHANGES[name]})\n")
        return made[name]

    return classifier


@pytest.fixture(scope="session")
def detector(tmp_path_factory):
    """The demo's Mask R-CNN."""
    return make(tmp_path_factory.mktemp("detector"), ROOT / "configs/shapes/mask-rcnn_ce-r18_fpn_shapes.py")
