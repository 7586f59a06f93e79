import logging

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from ce_mm.hooks import NonFiniteHook
from ce_mm.layers import CENorm, SwitchableNorm


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 16, 1)
        self.second = CENorm(16)
        self.third = nn.BatchNorm2d(16)
        self.fourth = CENorm(16, branches=())
        self.fifth = SwitchableNorm(16)
        self.sixth = CENorm(16, norm=dict(type="SN"))
        self.seventh = CENorm(16, norm=dict(type="SN"), branches=())

    def forward(self, x, mode):
        y = self.second(self.conv(self.first(torch.stack(x))))
        for norm in (self.third, self.fourth, self.fifth, self.sixth, self.seventh):
            norm(y)
        return dict(loss=self.conv.weight.sum())  # no NaN in the parameters, so that one batch does not spoil the next


class OneNorm(BaseModel):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x, mode):
        self.norm(torch.stack(x))
        return dict(loss=self.norm.weight.sum())


def pictures(bad):
    data = [torch.randn(3, 4, 4) for _ in range(24)]  # 12 iterations of 2
    for iteration in bad:
        data[2 * iteration - 1][0, 1, 1] = float("nan")
    return [dict(x=picture) for picture in data]


def train(bad, interval, folder, model=None):
    runner = Runner(
        Net() if model is None else model,
        work_dir=str(folder),
        train_dataloader=dict(
            batch_size=2, dataset=pictures(bad), sampler=dict(type="DefaultSampler", shuffle=False),
            collate_fn=pseudo_collate,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.0)),
        custom_hooks=[dict(type="NonFiniteHook", interval=interval)],
        default_hooks=dict(checkpoint=None),
        experiment_name=folder.name,
    )  # fmt: skip
    runner.model.data_preprocessor = nn.Module()
    runner.model.data_preprocessor.forward = lambda data, training: data
    runner.train()
    return runner.model


@pytest.mark.parametrize("interval", [1, 5, 50])
def test_layer_and_iteration_of_a_bad_batch_are_reported(interval, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train([4, 7], interval, tmp_path)
    reports = "\n".join(p.read_text() for p in tmp_path.rglob("*.log"))
    assert "first in first, 7 of 7 norm layers" in reports
    assert "at iteration 4 " in reports
    assert ("(4, 7)" in reports) == (interval == 50)


def test_no_norm_s_averages_are_spoilt(tmp_path):
    model = train([2, 12], 50, tmp_path)
    for name, value in model.named_buffers():
        assert value.isfinite().all(), name


@pytest.mark.parametrize(
    ("norm", "name"),
    [
        (SwitchableNorm(3), "norm"),
        (CENorm(3, norm=dict(type="SN"), reduction=1), "norm"),
        (CENorm(3, branches=()), "norm.norm"),
        (CENorm(3, norm=dict(type="SN"), branches=()), "norm.norm"),
    ],
    ids=["SN", "CE-over-SN", "CE-without-branches", "CE-over-SN-without-branches"],
)
def test_a_norm_is_reported_once_and_by_the_layer_that_holds_the_averages(norm, name, tmp_path):
    train([4], 5, tmp_path, OneNorm(norm))
    reports = "\n".join(p.read_text() for p in tmp_path.rglob("*.log"))
    assert f"at iteration 4 first in {name}, 1 of 1 norm layers" in reports
    assert all(value.isfinite().all() for value in norm.buffers())


def test_good_batches_are_not_reported(tmp_path):
    train([], 5, tmp_path)
    assert not any("NaN" in p.read_text() for p in tmp_path.rglob("*.log"))


def test_the_interval_is_at_least_one():
    with pytest.raises(ValueError, match="interval"):
        NonFiniteHook(interval=0)
