import os
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.fileio import BaseStorageBackend, LocalBackend, register_backend
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint
from ce_mm.checkpoints.saving import saving
from ce_mm.hooks import SafeCheckpointHook

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.data_preprocessor = nn.Module()
        self.data_preprocessor.forward = lambda data, training: dict(x=torch.stack(data))

    def forward(self, x, mode):
        return dict(loss=self.layer(x).sum()) if mode == "loss" else [x]


class BetterEachEpoch(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        epoch = float(MessageHub.get_current_instance().get_info("epoch", 0))
        return dict(acc=epoch, loss=-epoch)


def runner_of(folder, epochs, resume=False, name="first", by_epoch=True, load_from=None, **checkpoint):
    batches = dict(dataset=[torch.ones(2), torch.zeros(2)], collate_fn=pseudo_collate, batch_size=2)
    return Runner(
        Net(),
        work_dir=str(folder),
        train_dataloader=batches | dict(sampler=dict(type="DefaultSampler" if by_epoch else "InfiniteSampler")),
        train_cfg=dict(by_epoch=by_epoch, **{"max_epochs" if by_epoch else "max_iters": epochs}),
        val_dataloader=batches | dict(sampler=dict(type="DefaultSampler")),
        val_cfg=dict(),
        val_evaluator=[BetterEachEpoch()],
        test_dataloader=batches | dict(sampler=dict(type="DefaultSampler")),
        test_cfg=dict(),
        test_evaluator=[BetterEachEpoch()],
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        default_hooks=dict(
            checkpoint=dict(type="SafeCheckpointHook", by_epoch=by_epoch) | dict(interval=1) | checkpoint
        ),
        default_scope="mmengine",
        experiment_name=f"{folder.parent.name}_{folder.name}_{name}",
        resume=resume,
        load_from=load_from,
    )


def train(*args, **kwargs):
    runner = runner_of(*args, **kwargs)
    runner.train()
    return runner


def change(path, **entries):
    """Write other entries into what a checkpoint says of its run."""
    checkpoint = read_checkpoint(path)
    checkpoint["message_hub"]["runtime_info"].update(entries)
    torch.save(checkpoint, path)


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
    for suffix in ("tmp", "lock"):
        (tmp_path / f".part_0003.pth.0a1b2c3d.{suffix}").write_text("half")
    train(tmp_path, 1, filename_tmpl="part_{:04d}.pth")
    assert files(tmp_path) == ["last_checkpoint", "part_0001.pth"]


def test_checkpoints_may_lie_elsewhere_and_have_other_names(tmp_path):
    train(tmp_path / "work", 3, out_dir=str(tmp_path / "out"), filename_tmpl="net-{}.pth", max_keep_ckpts=1)

    assert files(tmp_path / "out/work") == ["net-3.pth"]
    assert find_latest_checkpoint(str(tmp_path / "work")) == str(tmp_path / "out/work/net-3.pth")


def test_left_overs_of_a_killed_run_go_and_other_files_stay(tmp_path):
    train(tmp_path, 1)
    run = "0a1b2c3d"
    left = [f".{name}.{run}.tmp" for name in ("epoch_2.pth", "best_acc_epoch_1.pth", "last_checkpoint")]
    locks = [name.replace(".tmp", ".lock") for name in left] + [f".epoch_3.pth.{run}.lock"]
    others = [".notes.tmp", f".notes.{run}.lock", f".notes.{run}.tmp", f"epoch_7.pth.{run}.tmp", "epoch_9.pth",
              f".best_of_mine.pth.{run}.lock", f".best_of_mine.pth.{run}.tmp"]  # fmt: skip
    for name in left + locks + others:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / f".epoch_3.pth.{run}.tmp").mkdir()

    train(tmp_path, 2, resume=True, name="second")

    assert files(tmp_path) == sorted(["epoch_1.pth", "epoch_2.pth", "last_checkpoint", *others])
    assert not (tmp_path / f".epoch_3.pth.{run}.tmp").exists()


def test_what_a_living_run_is_writing_stays(tmp_path):
    with saving(tmp_path / "epoch_3.pth", "0a1b2c3d") as unfinished:
        unfinished.write_bytes(b"half")
        train(tmp_path, 1)
        assert unfinished.read_bytes() == b"half"
    assert files(tmp_path) == ["epoch_1.pth", "epoch_3.pth", "last_checkpoint"]


def test_two_runs_in_one_folder_do_not_write_to_one_file(tmp_path, monkeypatch):
    put, at_once = LocalBackend.put, {}

    def noted_put(backend, data, path):
        if Path(path).name.startswith(".epoch_1.pth"):
            at_once[path] = len(data)
            if len(at_once) == 1:
                train(tmp_path, 1, name="second")  # while the first is writing
        put(backend, data, path)

    monkeypatch.setattr(LocalBackend, "put", noted_put)
    train(tmp_path, 1)

    assert len(at_once) == 2
    assert files(tmp_path) == ["epoch_1.pth", "last_checkpoint"]


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

    def noting(remove):
        def remove_noted(path, **kwargs):
            if Path(path).name.startswith("epoch_"):
                named.append(find_latest_checkpoint(str(tmp_path)))
            remove(path, **kwargs)

        return remove_noted

    for name in ("remove", "unlink"):
        monkeypatch.setattr(os, name, noting(getattr(os, name)))

    settings = dict(max_keep_ckpts=1, backend_args=backend_args)
    train(tmp_path, 3, resume=True, load_from=newest, name="second", **settings)

    assert files(tmp_path) == ["epoch_3.pth", "last_checkpoint"]
    assert named == [newest, newest]


def test_a_checkpoint_lists_what_was_there_as_it_was_saved(tmp_path):
    train(tmp_path, 3, max_keep_ckpts=1)

    info = read_checkpoint(tmp_path / "epoch_3.pth")["message_hub"]["runtime_info"]
    assert info["keep_ckpt_ids"] == [2, 3]


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


@pytest.fixture
def precious(tmp_path):
    """A file and a folder that belong to nobody's training, beside a work folder; returns that and their places."""
    (tmp_path / "x.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "epoch_1.pth").write_text("mine")
    return tmp_path / "trained", [tmp_path / "x.txt", tmp_path / "folder" / "epoch_1.pth"]


@pytest.mark.parametrize("named", ["../x.txt", "/x.txt", "/folder", "/trained/best_mine.pth", "/trained/epoch_9.pth"])
def test_what_a_checkpoint_names_is_not_removed_for_that(named, precious):
    folder, places = precious
    train(folder, 2, max_keep_ckpts=1, save_best="acc")
    places += [folder / "best_mine.pth", folder / "epoch_9.pth"]
    for place in places[-2:]:
        place.write_text("mine")
    path = str(folder.parent / named[1:]) if named.startswith("/") else named
    change(folder / "epoch_2.pth", superseded_ckpts=[path], best_ckpt=path)

    train(folder, 4, resume=True, name="second", max_keep_ckpts=1, save_best="acc")

    assert [place.read_text() for place in places] == ["mine"] * 4
    kept = ["best_acc_epoch_2.pth", "best_acc_epoch_4.pth", "best_mine.pth", "epoch_4.pth", "epoch_9.pth"]
    assert files(folder) == [*kept, "last_checkpoint"]


@pytest.mark.parametrize("save_best", ["acc", ["acc", "loss"]])
def test_files_of_the_run_that_another_starts_from_stay_and_so_do_namesakes(save_best, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    settings = dict(max_keep_ckpts=1, save_best=save_best, rule="greater")
    train(first, 2, **settings)
    before = files(first)
    second.mkdir()
    namesakes = ["epoch_1.pth", "best_acc_epoch_2.pth", "best_loss_epoch_1.pth"]
    for name in namesakes:
        (second / name).write_text("mine")

    train(second, 4, resume=True, load_from=str(first / "epoch_2.pth"), **settings)

    assert files(first) == before
    assert [(second / name).read_text() for name in namesakes] == ["mine"] * 3
    assert {"epoch_4.pth", "best_acc_epoch_4.pth"} <= set(files(second))


@pytest.mark.parametrize("copied", [False, True])
def test_a_folder_that_was_moved_or_copied_goes_on_as_if_it_had_not_been(copied, tmp_path):
    here, there, settings = tmp_path / "here", tmp_path / "there", dict(max_keep_ckpts=2, save_best="acc")
    train(here, 2, **settings)
    if copied:
        shutil.copytree(here, there)
        (here / "epoch_2.pth").write_bytes(b"not this one")
    else:
        shutil.move(here, there)
    before = files(here) if copied else None

    train(there, 3, resume=True, name="second", **settings)

    assert files(there) == ["best_acc_epoch_3.pth", "epoch_2.pth", "epoch_3.pth", "last_checkpoint"]
    assert files(here) == before if copied else not here.exists()


def test_a_folder_for_checkpoints_alone_may_be_moved_too(tmp_path):
    train(tmp_path / "work", 2, out_dir=str(tmp_path / "out"), max_keep_ckpts=1)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    (tmp_path / "work" / "epoch_2.pth").write_bytes(b"not this one")

    train(tmp_path / "work", 3, resume=True, name="second", out_dir=str(tmp_path / "moved"), max_keep_ckpts=1)

    assert files(tmp_path / "moved/work") == ["epoch_3.pth"]


@pytest.mark.parametrize("save_best", [None, "acc", ["acc", "loss"]])
def test_an_evaluation_by_itself_saves_nothing(save_best, tmp_path):
    runner = runner_of(tmp_path, 1, save_best=save_best)
    assert runner.val() == dict(acc=0, loss=0)
    assert runner.test() == dict(acc=0, loss=0)
    assert files(tmp_path) == []


@pytest.mark.parametrize("save_best", [None, "acc"])
def test_under_a_name_without_a_number_the_newest_is_kept(save_best, tmp_path):
    settings = dict(filename_tmpl="newest.pth", max_keep_ckpts=1, save_best=save_best)
    train(tmp_path, 3, **settings)
    train(tmp_path, 4, resume=True, name="second", **settings)
    assert read_checkpoint(tmp_path / "newest.pth")["meta"]["epoch"] == 4
    assert files(tmp_path) == ["best_acc_newest.pth"] * (save_best is not None) + ["last_checkpoint", "newest.pth"]


def test_other_names_after_a_resume_leave_those_of_before(tmp_path):
    train(tmp_path, 2, max_keep_ckpts=2)
    train(tmp_path, 4, resume=True, name="second", filename_tmpl="net-{:03d}.pth", max_keep_ckpts=1)
    assert files(tmp_path) == ["epoch_1.pth", "epoch_2.pth", "last_checkpoint", "net-004.pth"]


def test_a_link_goes_and_what_it_leads_to_stays(tmp_path):
    folder = tmp_path / "work"
    train(folder, 1, max_keep_ckpts=1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "rank0.pth").write_text("mine")
    (folder / "epoch_1.pth").rename(tmp_path / "start.pth")
    (folder / "epoch_1.pth").symlink_to(elsewhere)
    shutil.copy(tmp_path / "start.pth", folder / "epoch_x.pth")

    train(folder, 2, resume=True, load_from=str(folder / "epoch_x.pth"), name="second", max_keep_ckpts=1)

    assert not (folder / "epoch_1.pth").is_symlink()
    assert (elsewhere / "rank0.pth").read_text() == "mine"


def test_published_copies_are_made_as_by_mmengine(tmp_path):
    settings = dict(published_keys=["state_dict"], save_best=["acc", "loss"], rule="greater")
    train(tmp_path, 1, **settings)
    assert sum("-" in name for name in files(tmp_path)) == 3  # of the last and of either best
    train(tmp_path / "more", 1, resume=True, load_from=str(tmp_path / "epoch_1.pth"), name="second", **settings)
    assert files(tmp_path / "more") == []  # nothing left to train


WRONG = {
    "meta": [None, [], "epoch 2", {}, dict(epoch=2), dict(epoch="2", iter=2), dict(epoch=2, iter=-1)],
    "message_hub": [None, [], "hub", {}, dict(log_scalars=[], runtime_info={}, resumed_keys={})],
    "optimizer": [[], None],
    "state_dict": [[]],
}


@pytest.mark.parametrize(("part", "value"), [(part, value) for part, values in WRONG.items() for value in values])
def test_a_checkpoint_that_cannot_be_resumed_is_one_error_and_changes_nothing(part, value, tmp_path):
    train(tmp_path, 2, max_keep_ckpts=1)
    checkpoint = read_checkpoint(tmp_path / "epoch_2.pth")
    torch.save(checkpoint | {part: value}, tmp_path / "epoch_2.pth")
    before = files(tmp_path)
    runner = runner_of(tmp_path, 4, resume=True, name="second", max_keep_ckpts=1)
    weights = {name: each.clone() for name, each in runner.model.state_dict().items()}

    with pytest.raises(CheckpointError, match=rf"epoch_2\.pth: no training can go on from it, as {part}"):
        runner.train()

    assert files(tmp_path) == before
    torch.testing.assert_close(dict(runner.model.state_dict()), weights, rtol=0, atol=0)


def test_weights_alone_are_loaded_whatever_stands_beside_them(tmp_path):
    train(tmp_path, 1)
    weights = read_checkpoint(tmp_path / "epoch_1.pth")["state_dict"]
    torch.save(dict(state_dict=weights, meta=[], message_hub=5), tmp_path / "weights.pth")
    train(tmp_path / "more", 1, load_from=str(tmp_path / "weights.pth"), name="second")
    assert files(tmp_path / "more") == ["epoch_1.pth", "last_checkpoint"]


@pytest.mark.parametrize("text", ["", "\n", "epoch_7.pth", "/no/such/epoch_7.pth"])
def test_a_last_checkpoint_that_names_none_is_one_error_and_changes_nothing(text, tmp_path):
    train(tmp_path, 2)
    (tmp_path / "last_checkpoint").write_text(text)
    before = files(tmp_path)

    with pytest.raises(CheckpointError, match=r"last_checkpoint: (is empty|names '.*epoch_7\.pth').*--resume PATH"):
        train(tmp_path, 4, resume=True, name="second")

    assert files(tmp_path) == before
    assert (tmp_path / "last_checkpoint").read_text() == text
