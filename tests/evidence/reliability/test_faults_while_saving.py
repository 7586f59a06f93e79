"""At every single system call by which a checkpoint is saved, a kill or a full disk costs that checkpoint at most."""
import errno
import gc
import itertools
import os
import shutil
import signal
import subprocess
import traceback
from pathlib import Path

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from ce_mm.checkpoints.reading import read_checkpoint
from tools.evidence.reliability.deaths import DISK_FULL, dying_while_saving, interrupting

EPOCHS = 4
NUMBERS = itertools.count()
#: Of an epoch: the checkpoint; the name of the last one; the one before it; the best; both again; the best before it.
CALLS = 5 + 5 + 1 + 5 + 5 + 5 + 1


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(128, 128)
        self.data_preprocessor = nn.Module()
        self.data_preprocessor.forward = lambda data, training: dict(x=torch.stack(data))

    def forward(self, x, mode):
        y = nn.functional.dropout(self.layer(x))
        return dict(loss=y.square().mean()) if mode == "loss" else [y.mean()]


class BetterEachEpoch(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(acc=float(MessageHub.get_current_instance().get_info("epoch")))


def train(folder, epochs=EPOCHS):
    torch.manual_seed(0)
    data = dict(dataset=[torch.ones(128), torch.zeros(128)], collate_fn=pseudo_collate, batch_size=2)
    runner = Runner(
        Net(),
        work_dir=str(folder),
        train_dataloader=data | dict(sampler=dict(type="DefaultSampler")),
        val_dataloader=data | dict(sampler=dict(type="DefaultSampler", shuffle=False)),
        val_evaluator=[BetterEachEpoch()],
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9)),
        custom_hooks=[dict(type="StepSeedsHook")],
        default_hooks=dict(checkpoint=dict(type="SafeCheckpointHook", interval=1, max_keep_ckpts=1, save_best="acc")),
        default_scope="mmengine",
        randomness=dict(seed=0),
        resume=True,
        experiment_name=str(next(NUMBERS)),  # under one name, runners of one process share their history
    )
    runner.train()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the training comes to if nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return read_checkpoint(folder / f"epoch_{EPOCHS}.pth")


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """A function that makes a folder in which two epochs have been trained."""
    folder, kept = (tmp_path_factory.mktemp(name) for name in ("halfway", "kept"))
    train(folder, 2)
    shutil.copytree(folder, kept, dirs_exist_ok=True)

    def restore():
        shutil.rmtree(folder)
        return shutil.copytree(kept, folder)  # checkpoints know their paths

    return restore


def check_what_is_left(folder):
    """All that goes by its name is whole; what is named last is there, and so is the best it knows."""
    for path in folder.glob("*.pth"):
        if not path.name.startswith("."):
            read_checkpoint(path)
    last = read_checkpoint(find_latest_checkpoint(str(folder)))
    assert last["meta"]["epoch"] in (2, 3)
    assert Path(last["message_hub"]["runtime_info"]["best_ckpt"]).is_file()


def check_the_end(folder, whole):
    end = read_checkpoint(find_latest_checkpoint(str(folder)))
    assert end["meta"]["epoch"] == EPOCHS
    assert all(value.equal(whole["state_dict"][name]) for name, value in end["state_dict"].items())
    momenta = [part["optimizer"]["state"] for part in (end, whole)]
    assert all(state["momentum_buffer"].equal(momenta[1][i]["momentum_buffer"]) for i, state in momenta[0].items())
    names = {path.name for path in folder.iterdir() if path.is_file()} - {"last_checkpoint"}
    assert not any(name.endswith((".tmp", ".lock")) for name in names)
    assert {name for name in names if name.startswith("epoch_")} == {f"epoch_{EPOCHS}.pth"}
    return {name for name in names if name.startswith("best_")}


def test_a_kill_at_any_call_leaves_what_resume_needs(halfway, whole, tmp_path):
    note, notes = tmp_path / "note", []
    for call in range(CALLS):
        folder = halfway()

        child = os.fork()
        if child == 0:
            try:
                gc.disable()  # or it might tidy up what is still its parent's
                torch.set_num_threads(1)  # OpenMP's others are not in a copy of the process, which would wait for them
                with dying_while_saving("epoch_3", call, note):
                    train(folder, 3)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)  # not reached
        _, status = os.waitpid(child, 0)

        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, call
        notes.append(note.read_text())
        check_what_is_left(folder)
        train(folder)
        best = check_the_end(folder, whole)
        assert f"best_acc_epoch_{EPOCHS}.pth" in best and len(best) <= 2
    assert notes[0] == "write .epoch_3.pth.tmp"
    assert notes[-1] == "unlink best_acc_epoch_2.pth"


def test_nothing_else_is_called_in_between(halfway):
    with interrupting("epoch_3", CALLS, lambda call: pytest.fail(call)) as calls:
        train(halfway(), 3)

    assert len(calls) == CALLS
    assert [call for call in calls if call.startswith("replace")] == [
        "replace epoch_3.pth", "replace last_checkpoint", "replace best_acc_epoch_3.pth", "replace epoch_3.pth",
        "replace last_checkpoint",
    ]  # fmt: skip


@pytest.mark.parametrize("call", [call for call in range(CALLS - 1) if call not in (4, 9, 10, 15, 20, 25)])
def test_a_full_disk_is_said_and_costs_the_new_checkpoint_at_most(call, halfway, whole):
    """At every write, flush and replacement; a full disk does not keep anyone from removing a file."""
    folder = halfway()

    with interrupting("epoch_3", call, DISK_FULL) as calls, pytest.raises(OSError) as error:
        train(folder, 3)

    assert error.value.errno == errno.ENOSPC
    for text in (str(folder), "was not saved (No space left on device)", "bytes are free", "Make room", "--resume"):
        assert text in str(error.value)
    assert not [path for path in folder.iterdir() if path.name.endswith((".tmp", ".lock"))], calls
    check_what_is_left(folder)
    train(folder)
    check_the_end(folder, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A folder with a disk of its own, of 1 MiB; needs the right to mount one."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], check=False).returncode:
        pytest.skip("no right to mount a file system")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)  # mmengine's log is still open


def test_a_disk_that_is_really_full(small_disk, whole):
    folder = small_disk / "work"
    train(folder, 2)
    filler = small_disk / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - 2**16)  # room for the log, and half of a checkpoint

    with pytest.raises(OSError, match=r"epoch_3.pth was not saved \(No space left on device\): [1-9][\d,]* bytes"):
        train(folder, 3)

    check_what_is_left(folder)
    filler.unlink()
    train(folder)
    check_the_end(folder, whole)
