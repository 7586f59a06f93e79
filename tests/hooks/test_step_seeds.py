"""A training resumed from one of its own checkpoints ends as it did before, to the last bit, whatever draws numbers."""
import random
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner, loops
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ce_mm.checkpoints.reading import read_checkpoint
from ce_mm.hooks import StepSeedsHook, step_seeds
from ce_mm.layers import CENorm

LENGTH = 4  # iterations of an epoch, of three samples


class Noisy(Dataset):
    """Samples that are drawn anew each time, by all three libraries."""

    def __len__(self):
        return 3 * LENGTH

    def __getitem__(self, index):
        return torch.randn(8, 4, 4) + index / 10 + np.random.randn() + random.random()


class Stream(IterableDataset):
    def __len__(self):
        return 3 * LENGTH

    def __iter__(self):
        return (torch.randn(8, 4, 4) for _ in range(len(self)))


class Endless(IterableDataset):
    def __iter__(self):
        return iter(lambda: torch.randn(8, 4, 4), None)


class Net(BaseModel):
    def __init__(self):
        super().__init__(data_preprocessor=None)
        self.conv, self.norm, self.drop = nn.Conv2d(8, 8, 1), CENorm(8, group_size=4), nn.Dropout(0.5)
        self.data_preprocessor = nn.Module()
        self.data_preprocessor.forward = lambda data, training: dict(x=torch.stack(data))

    def forward(self, x, mode):
        y = self.drop(self.norm(self.conv(x)))
        return dict(loss=y.square().mean() + random.random() * y.mean()) if mode == "loss" else [y.mean()]


class Mean(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(torch.rand(()))

    def compute_metrics(self, results):
        return dict(mean=float(sum(results)))


def runner(
    folder, by_epoch, seed, validates=False, sampler=None, dataset=None, accumulative=1, hooks=(), amp=None, **loading
):
    default = dict(type="DefaultSampler" if by_epoch else "InfiniteSampler", shuffle=True)
    length = dict(max_epochs=3) if by_epoch else dict(max_iters=3 * LENGTH, val_interval=2)
    start = {key: loading.pop(key) for key in ("load_from", "resume") if key in loading}
    train = dict(dataset=dataset or Noisy(), sampler=sampler or default, collate_fn=pseudo_collate)
    train |= dict(batch_size=3) | loading
    if isinstance(train["dataset"], IterableDataset):
        train["sampler"] = None
    val = dict(
        val_dataloader=dict(dataset=Noisy(), batch_size=4, sampler=dict(type="DefaultSampler")),
        val_cfg=dict(), val_evaluator=[Mean()],
    )  # fmt: skip
    return Runner(
        Net(),
        work_dir=str(folder),
        train_dataloader=train,
        train_cfg=dict(by_epoch=by_epoch, **length),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.01), accumulative_counts=accumulative) | (amp or {}),
        param_scheduler=[
            dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=6),
            dict(type="CosineAnnealingLR", T_max=12, by_epoch=False, begin=6),
        ],
        custom_hooks=[dict(type="StepSeedsHook"), *hooks],
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", by_epoch=by_epoch, interval=1 if by_epoch else 3)),
        default_scope="mmengine",
        randomness=dict(seed=seed),
        experiment_name=f"{folder.parent.name}_{folder.name}",  # runners of one second and name share logs
        **(val if validates else {}),
        **start,
    )


def differences(folder, other, by_epoch=True):
    last = "epoch_3.pth" if by_epoch else f"iter_{3 * LENGTH}.pth"
    ours, theirs = (read_checkpoint(f / last) for f in (folder, other))
    return [
        name
        for part in ("state_dict", "optimizer", "ema_state_dict", "param_schedulers")
        for name, a, b in leaves(part, ours.get(part), theirs.get(part))
        if not (a.equal(b) if isinstance(a, torch.Tensor) else a == b)
    ]


def leaves(name, ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, dict | list):
        assert len(ours) == len(theirs)
        for key in ours if isinstance(ours, dict) else range(len(ours)):
            yield from leaves(f"{name}.{key}", ours[key], theirs[key])
    else:
        yield name, ours, theirs


def train_and_resume(tmp_path, by_epoch, resumed=(), **settings):
    """Train to the end, then once more from a checkpoint in between; the folders of both."""
    whole, second = tmp_path / "whole", tmp_path / "second"
    runner(whole, by_epoch, **settings).train()
    checkpoint = whole / ("epoch_1.pth" if by_epoch else "iter_3.pth")
    runner(second, by_epoch, load_from=str(checkpoint), resume=True, **settings | dict(resumed)).train()
    return whole, second


WORKERS = dict(num_workers=2)
EMA = dict(type="EMAHook", momentum=0.1)


@pytest.mark.parametrize(
    ("by_epoch", "settings"),
    [
        (True, dict(hooks=[EMA])),
        (True, dict(validates=True)),
        (True, WORKERS),
        (True, WORKERS | dict(persistent_workers=True, validates=True)),
        (True, dict(seed=None)),
        (False, dict(validates=True, hooks=[EMA])),
        (False, WORKERS | dict(validates=True)),
        (False, dict(seed=None)),
        (False, dict(sampler=dict(type="DefaultSampler", shuffle=True))),
    ],
    ids=lambda value: ("epochs" if value else "iterations") if isinstance(value, bool) else "-".join(value),
)
def test_a_resumed_training_ends_as_the_one_that_was_not_interrupted(by_epoch, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(loops.time, "sleep", lambda seconds: None)  # mmengine's between two rounds of a DefaultSampler
    whole, second = train_and_resume(tmp_path, by_epoch, **dict(seed=1) | settings)

    assert differences(whole, second, by_epoch) == []


def test_it_does_where_the_loader_is_iterated_before_the_training_begins(tmp_path, monkeypatch):
    """As by the original mmengine, whose loops do so when they are built."""

    class Eager(loops._InfiniteDataloaderIterator):
        def __init__(self, dataloader):
            super().__init__(dataloader)
            self._iterator = iter(dataloader)

    monkeypatch.setattr(loops, "_InfiniteDataloaderIterator", Eager)
    whole, second = train_and_resume(tmp_path, by_epoch=False, seed=1)

    assert differences(whole, second, by_epoch=False) == []


def test_the_scaler_of_amp_goes_on_with_its_scale(tmp_path, monkeypatch):
    """On the CPU, where mmengine's wrapper sees no use for one."""
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", partial(torch.amp.GradScaler, "cpu"))
    scale = dict(init_scale=2.0, growth_interval=3)

    whole, second = train_and_resume(
        tmp_path, by_epoch=True, seed=1, amp=dict(type="AmpOptimWrapper", dtype="bfloat16", loss_scale=scale)
    )

    assert differences(whole, second) == []
    assert read_checkpoint(second / "epoch_3.pth")["optimizer"]["loss_scaler"]["scale"] == 2.0 * 2**4


def test_configs_with_ce_have_it():
    cfg = Config.fromfile(Path(__file__).resolve().parents[2] / "configs/_base_/ce.py")

    assert any(hook.type == "StepSeedsHook" for hook in cfg.custom_hooks)


def test_without_the_hook_it_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(StepSeedsHook, "before_train_epoch", lambda *_: None)
    monkeypatch.setattr(StepSeedsHook, "before_train_iter", lambda *_, **__: None)

    whole, second = train_and_resume(tmp_path, by_epoch=True, seed=1)

    assert "state_dict.conv.weight" in differences(whole, second)


@pytest.mark.parametrize("by_epoch", [True, False])
def test_the_number_of_workers_may_change(by_epoch, tmp_path):
    whole, second = train_and_resume(tmp_path, by_epoch, resumed=WORKERS, seed=1)

    assert differences(whole, second, by_epoch) == []


def test_two_seeds_give_two_trainings(tmp_path):
    for seed in (1, 2):
        runner(tmp_path / str(seed), True, seed).train()

    assert "state_dict.conv.weight" in differences(tmp_path / "1", tmp_path / "2")


def test_fine_tuning_from_a_checkpoint_takes_its_weights_and_not_its_order(tmp_path):
    runner(tmp_path / "first", True, seed=None).train()
    shutil.copy(tmp_path / "first/epoch_3.pth", tmp_path / "weights.pth")

    tuned = runner(tmp_path / "tuned", True, seed=5, load_from=str(tmp_path / "weights.pth"))
    tuned.train()

    assert tuned.train_dataloader.sampler.seed == 5


def log(folder):
    return "\n".join(path.read_text() for path in folder.rglob("*.log"))


def test_a_checkpoint_inside_an_epoch_is_said_to_be_one(tmp_path):
    checkpoint = dict(type="CheckpointHook", by_epoch=False, interval=3)
    whole = runner(tmp_path / "whole", True, seed=1, hooks=[checkpoint])
    whole.train()
    runner(tmp_path / "second", True, seed=1, load_from=str(tmp_path / "whole/iter_3.pth"), resume=True).train()

    assert "goes on from epoch 0 and iteration 3, but so many epochs have 0 iterations" in log(tmp_path / "second")


def test_a_checkpoint_between_two_steps_of_the_optimizer_is_said_to_be_one(tmp_path):
    train_and_resume(tmp_path, by_epoch=False, seed=1, accumulative=2)

    assert "from iteration 3, and gradients add up over 2; those before it are lost" in log(tmp_path / "second")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_that_cannot_be_seeded_are_said_to_be_where_workers_make_them(num_workers, tmp_path):
    runner(tmp_path, True, seed=1, dataset=Stream(), num_workers=num_workers).train()

    assert log(tmp_path).count("random numbers depend on the workers' history") == num_workers


def test_a_resume_that_holds_says_nothing(tmp_path):
    train_and_resume(tmp_path, by_epoch=True, seed=1)

    assert "goes on" not in log(tmp_path / "second")


@pytest.mark.parametrize("runs", ["val", "test"])
def test_a_run_that_does_not_train_is_left_alone(runs, tmp_path):
    loading = dict(dataset=Noisy(), batch_size=4, sampler=dict(type="DefaultSampler"), collate_fn=pseudo_collate)
    parts = {f"{runs}_dataloader": loading, f"{runs}_cfg": dict(), f"{runs}_evaluator": [Mean()]}
    hooks = [dict(type=name) for name in ("StepSeedsHook", "NonFiniteHook", "ChannelInhibitionHook")]
    alone = Runner(
        Net(), work_dir=str(tmp_path), custom_hooks=hooks, default_hooks=dict(checkpoint=None),
        experiment_name=runs, **parts,
    )  # fmt: skip

    assert getattr(alone, runs)().keys() == {"mean"}


def test_an_iterable_data_set_without_a_length_resumes():
    hook = StepSeedsHook()
    hook.before_train(
        SimpleNamespace(
            iter=3, epoch=0, seed=0, train_loop=None, train_dataloader=DataLoader(Endless(), 3), optim_wrapper=None,
            message_hub=SimpleNamespace(runtime_info={}),
        )
    )  # fmt: skip

    assert hook.batches is None


def test_every_process_draws_numbers_of_its_own(monkeypatch):
    drawn = []
    for rank in range(2):
        monkeypatch.setattr(step_seeds, "get_rank", lambda rank=rank: rank)
        StepSeedsHook().before_train_iter(SimpleNamespace(seed=0, iter=3), 0)
        drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert all(a != b for a, b in zip(*drawn, strict=True))
