import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.fileio import BaseStorageBackend, LocalBackend, register_backend
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from ce_mm.checkpoints.reading import read_checkpoint
from ce_mm.hooks import SafeCheckpointHook

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.data_preprocessor = nn.Module()
        self.data_preprocessor.forward = lambda data, training: dict(x=torch.stack(data))

    def forward(self, x, mode):
        return dict(loss=self.layer(x).sum())


def train(folder, epochs, resume=False, name="first", by_epoch=True, load_from=None, **checkpoint):
    runner = Runner(
        Net(),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=[torch.ones(2), torch.zeros(2)], collate_fn=pseudo_collate, batch_size=2,
            sampler=dict(type="DefaultSampler" if by_epoch else "InfiniteSampler"),
        ),
        train_cfg=dict(by_epoch=by_epoch, **{"max_epochs" if by_epoch else "max_iters": epochs}),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        default_hooks=dict(
            checkpoint=dict(type="SafeCheckpointHook", by_epoch=by_epoch) | dict(interval=1) | checkpoint
        ),
        default_scope="mmengine",
        experiment_name=f"{folder.name}_{name}",
        resume=resume,
        load_from=load_from,
    )  # fmt: skip
    runner.train()
    return runner


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".py" and path.is_file())


@pytest.mark.parametrize("name", ["shapes/ce-resnet18_shapes.py", "coco/mask-rcnn_ce-r50_fpn_2x_coco.py"])
def test_settings_of_a_config_are_merged_as_before(name):
    cfg = Config.fromfile(CONFIGS / name)
    cfg.merge_from_dict({"default_hooks.checkpoint.save_best": "auto"})

    hook = HOOKS.build(cfg.default_hooks.checkpoint)

    assert type(hook) is SafeCheckpointHook
    assert (hook.interval, hook.save_best) == (1, ["auto"])
    assert hook.max_keep_ckpts == (2 if name.startswith("shapes") else -1)


@pytest.mark.parametrize("by_epoch", [True, False])
def test_the_newest_are_kept_and_the_last_is_named(by_epoch, tmp_path):
    train(tmp_path, 5, by_epoch=by_epoch, max_keep_ckpts=2)

    kind = "epoch" if by_epoch else "iter"
    assert files(tmp_path) == [f"{kind}_4.pth", f"{kind}_5.pth", "last_checkpoint"]
    assert find_latest_checkpoint(str(tmp_path)) == str(tmp_path / f"{kind}_5.pth")


def test_all_are_kept_unless_asked_for(tmp_path):
    train(tmp_path, 3)

    assert files(tmp_path) == ["epoch_1.pth", "epoch_2.pth", "epoch_3.pth", "last_checkpoint"]


def test_a_resumed_training_goes_on_counting(tmp_path):
    train(tmp_path, 3, max_keep_ckpts=2)
    train(tmp_path, 4, resume=True, name="second", max_keep_ckpts=2)

    assert files(tmp_path) == ["epoch_3.pth", "epoch_4.pth", "last_checkpoint"]


def test_a_resumed_training_knows_its_last_checkpoint(tmp_path):
    settings = dict(interval=2, save_last=False)
    train(tmp_path, 2, **settings)
    runner = train(tmp_path, 3, resume=True, name="second", **settings)
    hook = next(hook for hook in runner.hooks if isinstance(hook, SafeCheckpointHook))
    assert hook.last_ckpt == str(tmp_path / "epoch_2.pth")  # or a new best would be saved without one that knows it


def test_left_overs_go_whatever_the_template(tmp_path):
    (tmp_path / ".part_0003.pth.tmp").write_text("half")
    train(tmp_path, 1, filename_tmpl="part_{:04d}.pth")
    assert files(tmp_path) == ["last_checkpoint", "part_0001.pth"]


def test_checkpoints_may_lie_elsewhere_and_have_other_names(tmp_path):
    train(tmp_path / "work", 3, out_dir=str(tmp_path / "out"), filename_tmpl="net-{}.pth", max_keep_ckpts=1)

    assert files(tmp_path / "out/work") == ["net-3.pth"]
    assert find_latest_checkpoint(str(tmp_path / "work")) == str(tmp_path / "out/work/net-3.pth")


def test_left_overs_of_a_killed_run_go_and_other_files_stay(tmp_path):
    train(tmp_path, 1)
    left = [".epoch_2.pth.tmp", ".best_acc_epoch_1.pth.tmp", ".last_checkpoint.tmp"]
    others = [".notes.tmp", "epoch_7.pth.tmp", ".epoch_x", "epoch_9.pth"]
    for name in left + others:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".epoch_3.pth.tmp").mkdir()

    train(tmp_path, 2, resume=True, name="second")

    assert files(tmp_path) == sorted(["epoch_1.pth", "epoch_2.pth", "last_checkpoint", *others])
    assert not (tmp_path / ".epoch_3.pth.tmp").exists()


def test_what_a_killed_run_could_not_remove_goes_after_the_newer_one_is_named(tmp_path):
    """The kill: the second checkpoint was there, the first one still named, and the user resumed from the second."""
    train(tmp_path, 2, max_keep_ckpts=1)
    (tmp_path / "epoch_1.pth").write_bytes(b"it was whole once")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_1.pth"))
    newer = str(tmp_path / "epoch_2.pth")

    train(tmp_path, 2, resume=True, load_from=newer, name="second", max_keep_ckpts=1)

    assert files(tmp_path) == ["epoch_2.pth", "last_checkpoint"]
    assert find_latest_checkpoint(str(tmp_path)) == newer


@pytest.mark.parametrize("backend_args", [None, dict(backend="bucket")])
def test_what_is_kept_no_more_goes_after_the_newest_is_named(backend_args, tmp_path, monkeypatch):
    """After a kill the second of three was still named; the user resumes from the third and keeps one alone."""
    register_backend("bucket", Bucket, force=True)
    train(tmp_path, 3, max_keep_ckpts=3)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_2.pth"))
    newest, named = str(tmp_path / "epoch_3.pth"), []
    remove = LocalBackend.remove
    monkeypatch.setattr(
        LocalBackend, "remove", lambda *args: (named.append(find_latest_checkpoint(str(tmp_path))), remove(*args))
    )

    settings = dict(max_keep_ckpts=1, backend_args=backend_args)
    runner = train(tmp_path, 3, resume=True, load_from=newest, name="second", **settings)

    assert files(tmp_path) == ["epoch_3.pth", "last_checkpoint"]
    assert named == [newest, newest]
    assert runner.message_hub.get_info("keep_ckpt_ids") == [3]


def test_the_list_of_what_is_superseded_is_data(tmp_path):
    train(tmp_path, 2, max_keep_ckpts=1)

    info = read_checkpoint(tmp_path / "epoch_2.pth")["message_hub"]["runtime_info"]
    assert info["superseded_ckpts"] == ["epoch_1.pth"]
    assert info["keep_ckpt_ids"] == [2]


class Bucket(BaseStorageBackend):
    """Storage that mmengine cannot know to be a disk."""

    written = []

    def get(self, path):
        return LocalBackend().get(path)

    def get_text(self, path):
        return LocalBackend().get_text(path)

    def put(self, data, path):
        self.written.append(Path(path).name)
        LocalBackend().put(data, path)

    def __getattr__(self, name):
        return getattr(LocalBackend(), name)


def test_other_storage_is_written_as_mmengine_writes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Bucket, "written", [])
    register_backend("bucket", Bucket, force=True)

    train(tmp_path, 2, backend_args=dict(backend="bucket"), max_keep_ckpts=1)

    assert Bucket.written == ["epoch_1.pth", "epoch_2.pth"]
    assert files(tmp_path) == ["epoch_2.pth", "last_checkpoint"]


def test_a_checkpoint_may_be_a_folder(tmp_path, monkeypatch):
    """As strategies save that have a part for each rank."""

    def save_parts(runner, out_dir, filename, *args, **kwargs):
        Path(out_dir, filename).mkdir()
        Path(out_dir, filename, "rank0.pth").write_bytes(b"part")

    monkeypatch.setattr(Runner, "save_checkpoint", save_parts)
    train(tmp_path, 3, max_keep_ckpts=1)

    assert [path.name for path in tmp_path.glob("*.pth")] == ["epoch_3.pth"]
    assert os.listdir(tmp_path / "epoch_3.pth") == ["rank0.pth"]
