import logging

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from ce_mm.hooks import NonFiniteHook
from ce_mm.layers import CENorm


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 16, 1)
        self.second = CENorm(16)
        self.third = nn.BatchNorm2d(16)

    def forward(self, x, mode):
        self.third(self.second(self.conv(self.first(torch.stack(x)))))
        return dict(loss=self.conv.weight.sum())  # no NaN in the parameters, so that one batch does not spoil the next


def pictures(bad):
    data = [torch.randn(3, 4, 4) for _ in range(24)]  # 12 iterations of 2
    for iteration in bad:
        data[2 * iteration - 1][0, 1, 1] = float("nan")
    return [dict(x=picture) for picture in data]


def train(bad, interval, folder):
    runner = Runner(
        Net(),
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
    assert "first in first, 3 of 3 norm layers" in reports
    assert "at iteration 4 " in reports
    assert ("(4, 7)" in reports) == (interval == 50)


def test_no_norm_s_averages_are_spoilt(tmp_path):
    model = train([2, 12], 50, tmp_path)
    for name, value in model.named_buffers():
        assert value.isfinite().all(), name


def test_good_batches_are_not_reported(tmp_path):
    train([], 5, tmp_path)
    assert not any("NaN" in p.read_text() for p in tmp_path.rglob("*.log"))


def test_the_interval_is_at_least_one():
    with pytest.raises(ValueError, match="interval"):
        NonFiniteHook(interval=0)
