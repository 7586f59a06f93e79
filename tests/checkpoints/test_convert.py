import os

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from ce_mm.backbones import CEResNet
from ce_mm.checkpoints.convert import extract_backbone
from ce_mm.checkpoints.reading import CheckpointError


@pytest.fixture(scope="module")
def classifier():
    config = dict(
        type="ImageClassifier",
        backbone=dict(type="CEResNet", depth=18),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=4, in_channels=512),
    )
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return MODELS.build(config)


@pytest.fixture
def source(classifier, tmp_path):
    path = tmp_path / "epoch_1.pth"
    torch.save(dict(meta=dict(epoch=1), state_dict=classifier.state_dict(), optimizer=dict(state={})), path)
    return path


def test_the_backbone_loads_with_no_missing_and_no_unexpected_key(classifier, source, tmp_path):
    extract_backbone(source, tmp_path / "new" / "backbone.pth")
    written = torch.load(tmp_path / "new" / "backbone.pth", weights_only=True)
    assert set(written) == {"meta", "state_dict"}
    model = CEResNet(18)
    model.load_state_dict(written["state_dict"], strict=True)
    for name, value in classifier.backbone.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_names_of_a_wrapped_model_are_understood(classifier, tmp_path):
    torch.save({f"module.{name}": value for name, value in classifier.state_dict().items()}, tmp_path / "wrapped.pth")
    names = extract_backbone(tmp_path / "wrapped.pth", tmp_path / "backbone.pth")
    assert set(names) == set(classifier.backbone.state_dict())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fc.weight": torch.zeros(1)}, "holds no backbone.*'fc.weight'"),
        ({}, "holds no backbone"),
        ({"backbone.bn1.weight": torch.zeros(1)}, "without Channel Equilibrium"),
    ],
    ids=["no backbone", "nothing", "plain"],
)
def test_a_checkpoint_of_something_else_is_refused(state, message, tmp_path):
    torch.save(dict(state_dict=state), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=message):
        extract_backbone(tmp_path / "other.pth", tmp_path / "backbone.pth")
    assert sorted(os.listdir(tmp_path)) == ["other.pth"]


def test_a_destination_that_exists_is_left_alone(source, tmp_path):
    destination = tmp_path / "backbone.pth"
    destination.write_text("mine")
    for target in (destination, source):
        with pytest.raises(CheckpointError, match="exists already"):
            extract_backbone(source, target)
    assert destination.read_text() == "mine"


def test_an_interrupted_write_leaves_nothing_behind(source, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        extract_backbone(source, tmp_path / "backbone.pth")
    assert os.listdir(tmp_path) == [source.name]
