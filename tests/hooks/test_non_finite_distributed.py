"""A bad batch under mixed precision, and in one process of several."""
from functools import partial
from operator import itemgetter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.model import BaseModel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner
from ranks import on_ranks
from torch import nn
from torch.utils.data import DataLoader

import ce_mm.training  # noqa: F401  (for launchers without a GPU)
from ce_mm.layers import CENorm

STEPS = 6
BAD = 3  # the fourth


class Net(BaseModel):
    def __init__(self, sync, norm_eval=False):
        super().__init__(data_preprocessor=nn.Identity())
        self.data_preprocessor.forward = lambda data, training: data
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 1)
        self.norm = CENorm(8, group_size=4, reduction=2, sync=sync)
        self.norm_eval = norm_eval

    def train(self, mode=True):
        super().train(mode)
        self.norm.train(mode and not self.norm_eval)
        return self

    def forward(self, x, mode):
        return dict(loss=self.norm(self.conv(x)).float().square().mean())


def batches(rank, skip_bad=False):
    """One for each step; the bad one is that of the last process."""
    generator = torch.Generator().manual_seed(rank)
    x = [torch.randn(4, 3, 4, 4, generator=generator) for _ in range(STEPS)]
    if rank == (dist.get_world_size() if dist.is_initialized() else 1) - 1:
        x[BAD][0, 1, 2, 3] = float("inf")
    return [dict(x=b) for i, b in enumerate(x) if not (skip_bad and i == BAD)]


def train(folder, batches, optim_wrapper, sync=False, launcher="none", norm_eval=False):
    runner = Runner(
        Net(sync, norm_eval),
        work_dir=str(folder),
        train_dataloader=DataLoader(batches, collate_fn=itemgetter(0)),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=optim_wrapper | dict(optimizer=dict(type="SGD", lr=0.1)),
        custom_hooks=[dict(type="NonFiniteHook", interval=4)],
        default_hooks=dict(checkpoint=None),
        launcher=launcher,
        experiment_name=Path(folder).name,
    )
    runner.train()
    return runner


def report(folder):
    return "\n".join(path.read_text() for path in Path(folder).rglob("*.log"))


def amp(monkeypatch):
    """mmengine's AmpOptimWrapper asks for a GPU; PyTorch's scaler does without."""
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", partial(torch.amp.GradScaler, device="cpu"))
    return dict(type="AmpOptimWrapper", dtype="bfloat16", loss_scale=dict(init_scale=1024.0))


def test_with_amp_the_scaler_skips_a_bad_batch(tmp_path, monkeypatch):
    runner = train(tmp_path / "all", batches(0), amp(monkeypatch))
    without = train(tmp_path / "without", batches(0, skip_bad=True), amp(monkeypatch))
    assert runner.optim_wrapper.loss_scaler.get_scale() == 512
    torch.testing.assert_close(runner.model.state_dict(), without.model.state_dict(), rtol=0, atol=0)
    assert "at iteration 4 first in norm, 1 of 1 norm layers" in report(tmp_path / "all")
    assert "NaN" not in report(tmp_path / "without")


def test_what_float16_does_not_hold_is_skipped_by_pytorch_s_scaler_too():
    torch.manual_seed(0)  # mmengine's autocast takes bfloat16 alone on a CPU
    net = nn.Sequential(nn.Conv2d(3, 8, 1), CENorm(8, group_size=4))
    optimizer, scaler = torch.optim.SGD(net.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for value in (1.0, 1e6):
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        x = torch.randn(4, 3, 4, 4)
        x[0, 0] = value
        with torch.autocast("cpu", torch.float16):
            loss = net(x).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 512
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


def bad_batch_of_the_last_process(rank, folder, sync):
    with pytest.MonkeyPatch.context() as monkeypatch:
        runner = train(folder, batches(rank), amp(monkeypatch), sync, launcher="pytorch")
    assert runner.optim_wrapper.loss_scaler.get_scale() == 512
    for value in [*runner.model.parameters(), *(runner.model.buffers() if sync else ())]:
        first = value.detach().clone()
        dist.broadcast(first, 0)
        assert torch.equal(value, first)
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())
    last = dist.get_world_size() - 1
    bad = sync or rank == last
    assert runner.model.module.norm.norm.num_batches_tracked == STEPS - bad
    if rank == 0:
        ranks = f"0, {last}" if sync else str(last)
        assert f"at iteration 4 of rank {ranks} first in norm, 1 of 1 norm layers" in report(folder)


@pytest.mark.parametrize("sync", [False, True], ids=["each-for-itself", "sync"])
def test_a_bad_batch_of_one_process_is_reported_by_the_first_and_skipped_by_all(sync, tmp_path):
    on_ranks(bad_batch_of_the_last_process, 2, str(tmp_path), sync)


def bad_loss_of_the_last_process(rank, folder):
    with pytest.MonkeyPatch.context() as monkeypatch:
        train(folder, batches(rank), amp(monkeypatch), launcher="pytorch", norm_eval=True)
    if rank == 0:
        assert f"values at iteration 4 of rank {dist.get_world_size() - 1} in loss.\n" in report(folder)


def test_a_bad_loss_of_one_process_is_reported_by_the_first(tmp_path):
    on_ranks(bad_loss_of_the_last_process, 2, str(tmp_path))
