import pytest
import torch

from ce_mm.checkpoints.reading import CheckpointError
from ce_mm.checkpoints.resuming import check_resumable, latest_checkpoint, read_resumable

HUB = dict(log_scalars={}, runtime_info={}, resumed_keys={})
GOOD = dict(meta=dict(epoch=1, iter=4), message_hub=HUB)


@pytest.fixture
def work(tmp_path):
    """A work folder with a checkpoint, and a note of the last one to be written."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "epoch_2.pth").touch()
    return folder


def test_without_a_note_there_is_no_checkpoint(work):
    assert latest_checkpoint(str(work)) is None


@pytest.mark.parametrize("named", ["/somewhere/else/work/epoch_2.pth", "epoch_2.pth", "old/epoch_2.pth\n"])
def test_the_named_one_is_taken_beside_the_note(named, work):
    (work / "last_checkpoint").write_text(named)
    assert latest_checkpoint(str(work)) == str(work / "epoch_2.pth")


def test_beside_the_note_comes_before_where_the_path_leads(work, tmp_path):
    (tmp_path / "epoch_2.pth").touch()
    (work / "last_checkpoint").write_text(str(tmp_path / "epoch_2.pth"))
    assert latest_checkpoint(str(work)) == str(work / "epoch_2.pth")


def test_the_folder_of_the_checkpoints_comes_before_that_of_the_note(work, tmp_path):
    own = tmp_path / "out" / "work"
    own.mkdir(parents=True)
    (own / "epoch_2.pth").touch()
    (work / "last_checkpoint").write_text("/somewhere/else/epoch_2.pth")
    assert latest_checkpoint(str(work) + "/", str(tmp_path / "out")) == str(own / "epoch_2.pth")


def test_what_is_not_there_is_taken_as_it_stands(work, tmp_path):
    (tmp_path / "epoch_3.pth").touch()
    for named in (str(tmp_path / "epoch_3.pth"), "s3://bucket/epoch_2.pth"):
        (work / "last_checkpoint").write_text(named)
        assert latest_checkpoint(str(work)) == named


@pytest.mark.parametrize("content", [b"", b" \n", b"epoch_3.pth", b"/epoch_3.pth", b"\0", b"\xff\xfe", None])
def test_a_note_that_leads_nowhere_is_an_error_with_the_way_out(content, work):
    if content is None:
        (work / "last_checkpoint").mkdir()
    else:
        (work / "last_checkpoint").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"work/last_checkpoint: .*; write the path of a checkpoint into"):
        latest_checkpoint(str(work))


@pytest.mark.parametrize(
    "entries",
    [
        {},
        dict(last_ckpt="epoch_1.pth", keep_ckpt_ids=[1, 2], superseded_ckpts=["of", 3], best_ckpt=None),
        dict(best_score=torch.tensor(0.5), another_hook_s=[object]),
        dict(best_score=1, keep_ckpt_ids=[]),
    ],
)
def test_what_mmengine_saves_passes(entries):
    check_resumable(GOOD | dict(message_hub=HUB | dict(runtime_info=entries)), "a.pth")
    check_resumable(GOOD | dict(optimizer={}, param_schedulers=[]), "a.pth")
    check_resumable(GOOD | dict(meta=dict(epoch=0, iter=0, seed=None, sampler_seed=7)), "a.pth")


@pytest.mark.parametrize(
    ("entry", "value"),
    [("keep_ckpt_ids", 5), ("keep_ckpt_ids", ["1"]), ("superseded_ckpt_ids", "1"), ("superseded_ckpt_ids", ["/x"])],
)  # fmt: skip
def test_each_entry_is_of_its_kind(entry, value):
    hub = HUB | dict(runtime_info={entry: value})
    with pytest.raises(CheckpointError, match=rf"^a.pth: .* as message_hub.runtime_info.{entry} is .*; expected a"):
        check_resumable(GOOD | dict(message_hub=hub), "a.pth")


@pytest.mark.parametrize(
    ("place", "checkpoint"),
    [
        ("meta is missing", dict(message_hub=HUB)),
        ("meta is 3", GOOD | dict(meta=3)),
        ("meta.epoch is missing", GOOD | dict(meta=dict(iter=1))),
        ("meta.epoch is True", GOOD | dict(meta=dict(epoch=True, iter=1))),
        ("meta.iter is -1", GOOD | dict(meta=dict(epoch=1, iter=-1))),
        ("meta.iter is 1.5", GOOD | dict(meta=dict(epoch=1, iter=1.5))),
        ("message_hub is missing", dict(meta=GOOD["meta"])),
        ("message_hub.log_scalars is missing", GOOD | dict(message_hub={})),
        ("message_hub.resumed_keys is .*", GOOD | dict(message_hub=HUB | dict(resumed_keys=[]))),
    ],
)
def test_what_is_missing_or_of_another_kind_is_named_with_the_way_out(place, checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth: no training .* as {place}; expected .* give it as load_from"):
        read_resumable(tmp_path / "a.pth")
