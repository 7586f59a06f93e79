"""Files for others: the same content each time, both formats, all files or none."""
import errno
import hashlib
import itertools
import os

import pytest
import torch
from safetensors.torch import save_file

from ce_mm.checkpoints.publishing import SUFFIXES, is_misnamed, published, serialise, sha256, write_all
from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint

WEIGHTS = dict(b=torch.randn(3, 4), a=torch.tensor(7), c=torch.eye(2).expand(3, 2, 2), d=torch.randn(2).half())
META = dict(source="x.pth", cfg="model = {}", authors=dict(originals=dict(r=[0.1])))


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_weights_and_meta_come_back(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(serialise(WEIGHTS, META, suffix))
    found = read_checkpoint(path)
    assert same(found["state_dict"], WEIGHTS)
    assert all(found["state_dict"][name].dtype is value.dtype for name, value in WEIGHTS.items())
    assert found["meta"] == META


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_weights_make_the_same_bytes(suffix):
    copied = {name: value.clone() for name, value in WEIGHTS.items()}
    assert serialise(WEIGHTS, META, suffix) == serialise(copied, META, suffix)


def test_a_tensor_is_written_without_what_else_its_storage_holds():
    part = torch.zeros(1000, 1000)[0]
    assert len(serialise(dict(part=part), {}, ".pth")) < 10_000


def test_safetensors_of_others_have_no_meta(tmp_path):
    save_file(dict(w=torch.ones(2)), tmp_path / "other.safetensors", metadata=dict(format="pt"))
    assert read_checkpoint(tmp_path / "other.safetensors")["meta"] == {}


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 64, serialise(WEIGHTS, {}, ".safetensors")[:-1]])
def test_damaged_safetensors_are_refused(tmp_path, content):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"^{path}: "):
        read_checkpoint(path)


@pytest.mark.parametrize("meta", ["{", "[" * 100_000])
def test_damaged_metadata_is_refused(tmp_path, meta):
    save_file(dict(w=torch.ones(2)), tmp_path / "damaged.safetensors", metadata=dict(ce_mm=meta))
    with pytest.raises(CheckpointError, match="metadata is damaged"):
        read_checkpoint(tmp_path / "damaged.safetensors")


def test_a_published_name_has_the_first_eight_digits_of_the_hash(tmp_path):
    digest = sha256(b"content")
    assert digest == hashlib.sha256(b"content").hexdigest()
    assert published(tmp_path / "ce.r50.pth", digest) == tmp_path / f"ce-r50-{digest[:8]}.pth"


def test_torch_hub_finds_them_in_a_name_with_dots(tmp_path):
    path = published(tmp_path / "ce-shufflenet-v2-0.5x_8xb128_in1k.pth", "1a2b3c4d" * 8)
    assert path.name == "ce-shufflenet-v2-0p5x_8xb128_in1k-1a2b3c4d.pth"
    assert torch.hub.HASH_REGEX.search(path.name)[1] == "1a2b3c4d"


@pytest.mark.parametrize(
    ("name", "misnamed"),
    [("x-e64c826b.pth", False), ("x-e64c826c.pth", True), ("x-20240131.pth", False), ("x-e64c82.pth", False)],
)
def test_a_name_with_the_digits_of_another_hash_is_told(tmp_path, name, misnamed):
    (tmp_path / name).write_bytes(b"ce")
    assert is_misnamed(tmp_path / name) == misnamed


def test_files_are_written_into_a_new_folder(tmp_path):
    files = {tmp_path / "a" / "b" / name: name.encode() for name in ("x.pth", "x.py")}
    write_all(files)
    assert all(path.read_bytes() == content for path, content in files.items())
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["x.pth", "x.py"]


@pytest.mark.parametrize("fails_at", [0, 1])
def test_if_a_file_cannot_be_placed_none_is_there(tmp_path, monkeypatch, fails_at):
    link, calls = os.link, []

    def failing(old, new):
        calls.append(new)
        if len(calls) > fails_at:
            raise OSError(28, "No space left on device")
        link(old, new)

    monkeypatch.setattr(os, "link", failing)
    with pytest.raises(OSError, match="No space"):
        write_all({tmp_path / "new" / name: b"content" for name in ("x.pth", "x.py")})
    assert os.listdir(tmp_path) == []


def test_a_folder_that_was_there_stays(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_all({tmp_path / "x.pth": b"content"})
    assert os.listdir(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize("steps", range(6))
def test_however_far_a_killed_process_came_the_next_one_finishes(tmp_path, monkeypatch, steps):
    files = {tmp_path / "new" / name: name.encode() for name in ("x.pth", "x.py")}
    child = os.fork()
    if not child:
        made = itertools.count()
        for name in ("mkdir", "link", "unlink"):
            step = getattr(os, name)
            monkeypatch.setattr(os, name, lambda *args, step=step: step(*args) if next(made) < steps else os._exit(9))
        write_all(files)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (0 if steps == 5 else 9)
    write_all(files)
    assert {path: path.read_bytes() for path in (tmp_path / "new").iterdir()} == files


@pytest.fixture(params=["links", "no links"])
def file_system(request, monkeypatch):
    def failing(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if request.param == "no links":
        monkeypatch.setattr(os, "link", failing)


def test_files_of_others_stay(tmp_path, file_system):
    (tmp_path / "x.py").write_text("mine")
    with pytest.raises(FileExistsError):
        write_all({tmp_path / "x.pth": b"content", tmp_path / "x.py": b"content"})
    assert os.listdir(tmp_path) == ["x.py"] and (tmp_path / "x.py").read_text() == "mine"
    write_all({tmp_path / "y.pth": b"content"})
    assert sorted(os.listdir(tmp_path)) == ["x.py", "y.pth"]
