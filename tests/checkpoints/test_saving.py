import errno
import os

import pytest

from ce_mm.checkpoints.saving import saving, unfinished


def test_it_appears_under_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "epoch_1.pth"
    with saving(path) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
        temporary.write_bytes(b"whole")

    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["epoch_1.pth"]


def test_what_was_there_stays_where_the_block_fails(tmp_path):
    path = tmp_path / "epoch_1.pth"
    path.write_bytes(b"before")
    with pytest.raises(KeyError), saving(path) as temporary:
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
    with saving(path) as temporary:
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
    with saving(path) as temporary:
        temporary.write_bytes(b"whole")

    assert calls == [str(unfinished(path)), "replace", str(tmp_path)]


def test_a_file_system_that_cannot_flush_folders_will_do(tmp_path, monkeypatch):
    fsync = os.fsync

    def only_files(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    with saving(tmp_path / "epoch_1.pth") as temporary:
        temporary.write_bytes(b"whole")

    assert os.listdir(tmp_path) == ["epoch_1.pth"]


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.ENOSPC, "Make room"), (errno.EDQUOT, "max_keep_ckpts"), (errno.EIO, "Check the disk")]
)
def test_an_error_says_what_was_written_what_is_free_and_what_to_do(code, advice, tmp_path):
    path = tmp_path / "epoch_1.pth"
    with pytest.raises(OSError) as error, saving(path) as temporary:
        temporary.write_bytes(bytes(12345))
        raise OSError(code, os.strerror(code))

    assert error.value.errno == code
    for text in (str(path), os.strerror(code), "12,345 bytes of it were written", "bytes are free", advice, "--resume"):
        assert text in str(error.value)
    assert os.listdir(tmp_path) == []
