"""What CE says of a training in which its averages stay where they start."""
from types import SimpleNamespace

import pytest
import torch
from mmdet.models.backbones import ResNet as PlainResNet

from ce_mm.backbones import CEResNet
from ce_mm.layers import frozen_start


@pytest.fixture
def said(monkeypatch):
    """The warnings from here on."""
    frozen_start.warn_of_frozen_start.cache_clear()
    lines = []
    monkeypatch.setattr(frozen_start, "warnings", SimpleNamespace(warn=lambda text, stacklevel: lines.append(text)))
    return lines


def pictures():
    return torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize(
    "network",
    [
        lambda: CEResNet(18, norm_eval=True),
        lambda: CEResNet(18, norm_eval=True, norm_cfg=dict(type="GN", num_groups=8)),
        lambda: CEResNet(18, frozen_stages=1),
        lambda: PlainResNet(18, norm_cfg=dict(type="CE"), norm_eval=True),
    ],
    ids=["norm_eval", "norm_eval over GN", "frozen_stages", "mmdet's"],
)
def test_a_training_with_fresh_averages_in_eval_mode_is_told_once_what_to_set(network, said):
    for model in (network(), network()):
        model.train()
        for _ in range(2):
            model(pictures())
    assert len(said) == 1
    assert "norm_eval=False and frozen_stages=-1" in said[0] and "load weights" in said[0]


@pytest.mark.parametrize("kwargs", [dict(norm_eval=True, frozen_stages=1), dict(frozen_stages=2)], ids=str)
def test_nothing_is_said_of_averages_that_batches_have_moved(kwargs, said):
    source, model = CEResNet(18), CEResNet(18, **kwargs)
    source(pictures())
    model.load_state_dict(source.state_dict())
    model.train()
    model(pictures())
    assert said == []


def test_nothing_is_said_outside_of_a_training(said):
    model = CEResNet(18, norm_eval=True)
    model.eval()
    model(pictures())
    model.requires_grad_(False)(pictures().requires_grad_())  # as for a saliency map
    model.requires_grad_().train()
    with torch.no_grad():
        model(pictures())
    moving = CEResNet(18)
    moving(pictures())
    assert said == []
