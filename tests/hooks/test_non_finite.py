import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from ce_mm.checkpoints.reading import read_checkpoint
from ce_mm.hooks import NonFiniteHook
from ce_mm.hooks.non_finite import not_finite
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

    def forward(self, x, mode="tensor"):
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


def train(bad, interval, folder, model=None, hooks=(), train_cfg=None, checkpoint=None):
    runner = Runner(
        Net() if model is None else model,
        work_dir=str(folder),
        train_dataloader=dict(
            batch_size=2, dataset=pictures(bad), sampler=dict(type="DefaultSampler", shuffle=False),
            collate_fn=pseudo_collate,
        ),
        train_cfg=train_cfg or dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.0)),
        custom_hooks=[dict(type="NonFiniteHook", interval=interval), *hooks],
        default_hooks=dict(checkpoint=checkpoint),
        experiment_name=folder.name,
    )  # fmt: skip
    runner.model.data_preprocessor = nn.Module()
    runner.model.data_preprocessor.forward = lambda data, training: data
    runner.train()
    return runner.model


def step(hook, runner, x):
    hook.before_train_iter(runner, runner.iter)
    runner.model(x.to(next(runner.model.parameters(), x).dtype))
    hook.after_train_iter(runner, runner.iter)
    runner.iter += 1


def report(folder):
    return "\n".join(p.read_text() for p in folder.rglob("*.log"))


@pytest.mark.parametrize("interval", [1, 5, 50])
def test_layer_and_iteration_of_a_bad_batch_are_reported(interval, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train([4, 7], interval, tmp_path)
    reports = report(tmp_path)
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
    reports = report(tmp_path)
    assert f"at iteration 4 first in {name}, 1 of 1 norm layers" in reports
    assert all(value.isfinite().all() for value in norm.buffers())


def test_good_batches_are_not_reported(tmp_path):
    train([], 5, tmp_path)
    assert "NaN" not in report(tmp_path)


class Frozen(BaseModel):
    """With its norm in eval mode, as norm_eval=True leaves it."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x, mode):
        square = self.norm(torch.stack(x)).square().mean().detach()
        return dict(loss_weight=self.conv.weight.sum(), loss_map=square, acc=square)


def test_a_loss_is_reported_where_all_norms_are_in_eval_mode(tmp_path):
    train([4, 7], 5, tmp_path, Frozen())
    assert "values at iteration 4 in loss, loss_map.\n" in report(tmp_path)
    assert "values at iteration 7 in loss, loss_map.\n" in report(tmp_path)


@pytest.mark.parametrize(
    ("outputs", "name"),
    [
        (lambda loss: dict(loss=[torch.ones(2), loss.expand(2, 3)], text="nan", acc=loss), "loss.1"),
        (lambda loss: dict(teacher=dict(loss_cls=(loss.double(),)), loss=torch.ones(())), "teacher.loss_cls.0"),
        (lambda loss: dict(loss=loss.half(), loss_float=1e300, count_of_loss=torch.tensor(3)), "loss"),
        (lambda loss: dict(loss_float=loss.item()), "loss_float"),
        (lambda loss: loss, "loss"),
    ],
    ids=["list", "nested", "half", "float", "tensor"],
)
def test_a_loss_is_found_wherever_a_train_step_puts_it(outputs, name):
    hook, runner = NonFiniteHook(), SimpleNamespace(model=nn.Conv2d(3, 3, 1), iter=3)
    for runner.iter, loss in enumerate((0.0, float("nan"))):
        hook.before_train_iter(runner, runner.iter)
        hook.after_train_iter(runner, runner.iter, outputs=outputs(torch.tensor(loss)))
    assert {i: [name for _, name in labels] for i, labels in not_finite(hook.losses).items()} == {2: [name]}


@pytest.mark.parametrize("train_cfg", [dict(by_epoch=True, max_epochs=2), dict(by_epoch=False, max_iters=24)], ids=str)
def test_averages_that_another_hook_measured_anew_stay_finite(train_cfg, tmp_path):
    interval = 1 if train_cfg["by_epoch"] else 12
    hooks = [dict(type="mmpretrain.PreciseBNHook", interval=interval)]
    checkpoint = dict(type="CheckpointHook", interval=interval, by_epoch=train_cfg["by_epoch"])
    model = train([4], 5, tmp_path, Net(), hooks, train_cfg, checkpoint)
    states = [read_checkpoint(path)["state_dict"] for path in tmp_path.glob("*.pth")]
    assert len(states) == 2
    for state in [model.state_dict(), *states]:
        assert all(value.isfinite().all() for value in state.values())
    assert "at iteration 12 first in first" in report(tmp_path)  # by the other hook's own passes


def test_a_norm_goes_back_to_what_it_held_before_the_bad_batch_wherever_that_came_from():
    model = nn.Sequential(nn.BatchNorm2d(3))
    hook, runner = NonFiniteHook(), SimpleNamespace(model=model, iter=0)
    step(hook, runner, torch.randn(2, 3, 4, 4))
    loaded = nn.Sequential(nn.BatchNorm2d(3)).state_dict() | {"0.running_mean": torch.arange(3.0)}
    model.load_state_dict(loaded, assign=True)
    step(hook, runner, torch.full((2, 3, 4, 4), float("nan")))
    assert model[0].running_mean.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "change",
    [
        nn.SyncBatchNorm.convert_sync_batchnorm,
        copy.deepcopy,
        nn.Module.double,
        lambda model: nn.Sequential(model, nn.BatchNorm2d(3)),
        lambda model: model[:1],
        nn.ReLU,
    ],
    ids=["sync", "copied", "double", "more", "fewer", "none"],
)
def test_norms_may_be_others_in_each_iteration(change):
    hook = NonFiniteHook()
    runner = SimpleNamespace(model=nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)), iter=0)
    step(hook, runner, torch.randn(2, 3, 4, 4))
    runner.model = change(runner.model)
    step(hook, runner, torch.full((2, 3, 4, 4), float("nan")))
    assert all(value.isfinite().all() for value in runner.model.buffers())


@pytest.mark.parametrize("interval", [0, -1, 1.5, "50", None])
def test_the_interval_is_a_whole_number_of_at_least_one(interval):
    with pytest.raises(ValueError, match=f"interval must be a whole number of at least 1, got {interval!r}"):
        NonFiniteHook(interval=interval)


def test_a_number_that_changes_later_is_reported_as_it_was():
    hook, runner, loss = NonFiniteHook(), SimpleNamespace(model=nn.ReLU(), iter=0), torch.tensor(float("nan"))
    hook.after_train_iter(runner, 0, outputs=dict(loss=loss))
    loss.zero_()
    assert list(not_finite(hook.losses)) == [1]
