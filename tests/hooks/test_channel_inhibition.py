"""The hook logs what the instrument measures, in the training step itself, and changes nothing."""
import copy
import json

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ce_mm.analysis.channels import channel_magnitudes, inhibited_ratios
from ce_mm.hooks import ChannelInhibitionHook
from ce_mm.layers import CENorm
from ce_mm.ops import RELU


class Net(BaseModel):
    """Conv, BN, ReLU, conv, CE with its ReLU inside; two of BN's channels are dead."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn, self.relu = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.ce = nn.Conv2d(8, 16, 1), CENorm(16)
        self.bn.weight.data[:2] = 0
        self.data_preprocessor = nn.Module()
        self.data_preprocessor.forward = lambda data, training: data

    def forward(self, x, mode):
        y = self.ce(self.conv2(self.relu(self.bn(self.conv1(torch.stack(x))))), rectifier=RELU)
        return dict(loss=y.square().mean())


class Functional(Net):
    def forward(self, x, mode):
        return dict(loss=self.conv1(torch.stack(x)).relu().mean())


def pictures():
    torch.manual_seed(1)
    return [dict(x=torch.randn(3, 4, 4)) for _ in range(24)]  # 12 iterations of 2


def train(folder, hook, model=None, lr=0.1):
    runner = Runner(
        model or Net(),
        work_dir=str(folder),
        train_dataloader=dict(
            batch_size=2, dataset=pictures(), sampler=dict(type="DefaultSampler", shuffle=False),
            collate_fn=pseudo_collate,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=lr)),
        custom_hooks=[hook] if hook else [],
        default_hooks=dict(checkpoint=None, logger=None),
        experiment_name=folder.name,
    )  # fmt: skip
    runner.train()
    logs = folder.rglob("scalars.json")
    return runner.model, [json.loads(line) for log in logs for line in log.read_text().splitlines()]


def hook(**arguments):
    return dict(type="ChannelInhibitionHook", **arguments)


def test_it_logs_what_the_instrument_measures_of_the_batch_in_training_mode(tmp_path):
    _, logged = train(tmp_path, hook(interval=4, threshold=0.3, layers=1), lr=0.0)
    assert [row["step"] for row in logged] == [4, 8, 12]
    model, data = Net().train(), pictures()
    for row in logged:
        batch = [each["x"] for each in data[2 * row["step"] - 2 : 2 * row["step"]]]
        measured = copy.deepcopy(model)
        ratios = inhibited_ratios(channel_magnitudes(measured, [lambda m=measured, b=batch: m(b, mode="loss")]), 0.3)
        assert list(ratios) == ["relu", "ce"] and ratios["relu"] >= 2 / 8
        assert row["inhibited/layer01"] == row["inhibited/mean"] == ratios["relu"]
        assert row["inhibited/layer02"] == ratios["ce"]
        assert row["lambda/ce"] == 0.5


def test_the_dead_channels_are_the_inhibited_ones(tmp_path):
    _, [row] = train(tmp_path, hook(interval=12), lr=0.0)
    assert row["inhibited/layer01"] == 2 / 8
    assert row["inhibited/mean"] == (2 / 8 + row["inhibited/layer02"]) / 2


def test_training_goes_as_without_it_and_nothing_is_left_on_the_network(tmp_path):
    (with_hook, logged), (without, _) = train(tmp_path / "a", hook(interval=1)), train(tmp_path / "b", None)
    assert len(logged) == 12
    for (name, left), right in zip(with_hook.state_dict().items(), without.state_dict().values(), strict=True):
        assert torch.equal(left, right), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in with_hook.modules())


def test_lambda_follows_the_training(tmp_path):
    model, logged = train(tmp_path, hook(interval=6), lr=10.0)
    assert logged[-1]["lambda/ce"] == model.ce.mix.sigmoid().item() != 0.5


def test_the_layers_are_named_in_the_log_once(tmp_path):
    train(tmp_path, hook(interval=3))
    log = "\n".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert log.count("Layers of ChannelInhibitionHook: 1 relu, 2 ce") == 1


def test_a_network_without_a_rectifier_to_watch_is_said_to_be_one_once(tmp_path):
    _, logged = train(tmp_path, hook(interval=3), model=Functional())
    log = "\n".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert log.count("Layers of ChannelInhibitionHook: none") == 1
    assert [sorted(row) for row in logged] == [["lambda/ce", "step"]] * 4


def test_configs_find_it_by_its_name():
    assert isinstance(HOOKS.build(hook()), ChannelInhibitionHook)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(interval=0), "interval must be a whole number of at least 1, got 0"),
        (dict(interval="50"), "interval must be a whole number of at least 1, got '50'"),
        (dict(layers=0), "layers must be a whole number of at least 1, got 0"),
        (dict(layers=2.5), "layers must be a whole number of at least 1, got 2.5"),
        (dict(threshold=-0.5), "threshold of inhibited channels must be at least 0, got -0.5"),
    ],
)
def test_wrong_arguments_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        ChannelInhibitionHook(**arguments)
