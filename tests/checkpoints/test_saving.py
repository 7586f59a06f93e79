import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from ce_mm.checkpoints.saving import saving
from ce_mm.files import discard, new_run, remove_abandoned, unfinished

RUN = "0a1b2c3d"


def test_it_appears_under_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "epoch_1.pth"
    with saving(path, RUN) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
        temporary.write_bytes(b"whole")

    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["epoch_1.pth"]


def test_what_was_there_stays_where_the_block_fails(tmp_path):
    path = tmp_path / "epoch_1.pth"
    path.write_bytes(b"before")
    with pytest.raises(KeyError), saving(path, RUN) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError

    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["epoch_1.pth"]


@pytest.mark.parametrize("before", [None, b"a file", {"rank0.pth": b"0", "rank7.pth": b"7"}])
def test_a_folder_is_moved_like_a_file(before, tmp_path):
    path = tmp_path / "epoch_1.pth"
    if isinstance(before, dict):
        path.mkdir()
        for name, content in before.items():
            (path / name).write_bytes(content)
    with saving(path, RUN) as temporary:
        temporary.mkdir()
        for rank in range(2):
            (temporary / f"rank{rank}.pth").write_bytes(b"new")

    assert sorted(os.listdir(path)) == ["rank0.pth", "rank1.pth"]
    assert os.listdir(tmp_path) == ["epoch_1.pth"]


def test_it_is_on_disk_before_it_has_its_name_and_its_name_before_the_block_ends(tmp_path, monkeypatch):
    path, calls = tmp_path / "epoch_1.pth", []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def noted_replace(source, destination):
        calls.append("replace")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with saving(path, RUN) as temporary:
        temporary.write_bytes(b"whole")

    assert calls == [str(unfinished(path, RUN)), "replace", str(tmp_path)]


def test_a_file_system_that_cannot_flush_folders_will_do(tmp_path, monkeypatch):
    fsync = os.fsync

    def only_files(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    with saving(tmp_path / "epoch_1.pth", RUN) as temporary:
        temporary.write_bytes(b"whole")

    assert os.listdir(tmp_path) == ["epoch_1.pth"]


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.ENOSPC, "Make room"), (errno.EDQUOT, "max_keep_ckpts"), (errno.EIO, "Check the disk")]
)
def test_an_error_says_what_was_written_what_is_free_and_what_to_do(code, advice, tmp_path):
    path = tmp_path / "epoch_1.pth"
    with pytest.raises(OSError) as error, saving(path, RUN) as temporary:
        temporary.write_bytes(bytes(12345))
        raise OSError(code, os.strerror(code))

    assert error.value.errno == code
    for text in (str(path), os.strerror(code), "12,345 bytes of it were written", "bytes are free", advice, "--resume"):
        assert text in str(error.value)
    assert os.listdir(tmp_path) == []


def test_two_runs_that_save_to_one_name_at_once_leave_the_whole_of_one(tmp_path):
    path, (first, second) = tmp_path / "epoch_1.pth", (new_run(), new_run())
    with saving(path, first) as ours:
        ours.write_bytes(b"first, ")
        with saving(path, second) as theirs:
            theirs.write_bytes(b"second")
        with ours.open("ab") as file:
            file.write(b"whole")

    assert path.read_bytes() == b"first, whole"
    assert os.listdir(tmp_path) == ["epoch_1.pth"]


DYING = """
import os, signal, sys
from pathlib import Path
from ce_mm.checkpoints.saving import saving
from ce_mm.files import new_run
for name in ("epoch_1.pth", "best_acc_epoch_1.pth"):
    block = saving(Path(sys.argv[1], name), new_run())
    block.__enter__().mkdir() if name == "epoch_1.pth" else block.__enter__().write_bytes(b"half")
    globals()[name] = block
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_dead_process_left_goes_and_that_of_a_living_one_stays(tmp_path):
    died = subprocess.run([sys.executable, "-c", DYING, tmp_path], check=False)
    assert died.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 4
    (tmp_path / ".epoch_1.pth.tmp").write_bytes(b"of nobody known")

    with saving(tmp_path / "epoch_1.pth", RUN) as temporary:
        temporary.write_bytes(b"half")
        remove_abandoned(tmp_path, lambda name: name == "epoch_1.pth")
        assert temporary.read_bytes() == b"half"

    assert len(os.listdir(tmp_path)) == 4  # with the other's .tmp and .lock
    remove_abandoned(tmp_path, lambda name: name == "best_acc_epoch_1.pth")
    assert sorted(os.listdir(tmp_path)) == [".epoch_1.pth.tmp", "epoch_1.pth"]


def test_where_nothing_can_be_locked_it_is_saved_and_nothing_is_removed(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    left = [f".epoch_1.pth.{RUN}.{suffix}" for suffix in ("lock", "tmp")]
    for name in left:
        (tmp_path / name).touch()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with saving(tmp_path / "epoch_1.pth", new_run()) as temporary:
        temporary.write_bytes(b"whole")
        assert not temporary.with_suffix(".lock").exists()  # which would say to others that this process is dead
    remove_abandoned(tmp_path, lambda name: True)

    assert sorted(os.listdir(tmp_path)) == [*left, "epoch_1.pth"]


def test_a_link_is_replaced_or_removed_and_what_it_leads_to_stays(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "rank0.pth").touch()
    for name in ("epoch_1.pth", "epoch_2.pth"):
        (tmp_path / name).symlink_to(target)

    with saving(tmp_path / "epoch_1.pth", RUN) as temporary:
        temporary.mkdir()
    discard(tmp_path / "epoch_2.pth")

    assert os.listdir(target) == ["rank0.pth"]
    assert sorted(os.listdir(tmp_path)) == ["epoch_1.pth", "target"]


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path):
    path = tmp_path / "epoch_1.pth"
    path.mkdir()
    with pytest.raises(OSError, match=r"epoch_1\.pth was not saved"), saving(path, RUN) as temporary:
        temporary.write_bytes(b"whole")
    assert os.listdir(tmp_path) == ["epoch_1.pth"] and path.is_dir()
