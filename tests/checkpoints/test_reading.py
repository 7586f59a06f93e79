"""read_checkpoint reads what mmengine writes, refuses all else with one clear error, and runs nothing."""
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from ce_mm.checkpoints.reading import CheckpointError, load_safely, read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


@pytest.fixture(params=["zip", "legacy"])
def save(request, tmp_path):
    """Save with torch.save, in its present format or in the one before PyTorch 1.6, and return the path."""

    def write(content: object, **options: object) -> Path:
        path = tmp_path / "checkpoint.pth"
        torch.save(content, path, _use_new_zipfile_serialization=request.param == "zip", **options)
        return path

    return write


def edit_pickle(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes in the pickle of a zip checkpoint."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in entries if name.endswith("data.pkl"))
    assert old in entries[pickled]
    entries[pickled] = entries[pickled].replace(old, new)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


# --- what mmengine writes ---------------------------------------------------------------------------------------------


def test_weights_and_plain_values_come_back(save):
    weights = OrderedDict(weight=torch.randn(3, 4), count=torch.tensor(7))
    read = read_checkpoint(save({"state_dict": weights, "meta": {"epoch": 3, "cfg": "a = 1", "CLASSES": ("a", "b")}}))
    assert torch.equal(read["state_dict"]["weight"], weights["weight"]) and read["state_dict"]["count"] == 7
    assert read["meta"] == {"epoch": 3, "cfg": "a = 1", "CLASSES": ("a", "b")}


def test_a_bare_state_dict_comes_back(save):
    assert torch.equal(read_checkpoint(save(OrderedDict(w=torch.ones(2))))["w"], torch.ones(2))


def test_history_buffers_come_back_as_plain_history_buffers(save):
    read = read_checkpoint(save({"loss": HistoryBuffer([3.0, 1.0], [1, 1])}))["loss"]
    assert type(read) is HistoryBuffer
    assert read.statistics("mean") == 2.0 and read.statistics("min", 1) == 1.0
    read.update(5.0)
    assert read.data[0].tolist() == [3.0, 1.0, 5.0]


def test_a_history_buffer_without_entries_comes_back(save):
    assert read_checkpoint(save({"loss": HistoryBuffer()}))["loss"].data[0].shape == (0,)


def test_a_checkpoint_read_and_saved_again_is_still_mmengines(save):
    """Nothing of ce_mm gets into the file."""
    again = io.BytesIO()
    torch.save(read_checkpoint(save({"loss": HistoryBuffer([3.0], [1]), "best": np.float64(0.5)})), again)
    assert b"ce_mm" not in again.getvalue()


@pytest.mark.parametrize("value", [
    np.float64(0.25), np.float32(0.25), np.int64(3), np.bool_(True), np.arange(6.0).reshape(2, 3),
    np.arange(3, dtype=np.uint8), np.array([1.5, 2], np.float16), np.array([1 + 2j]), np.zeros((0, 4), np.int32),
], ids=lambda value: f"{type(value).__name__}-{value.dtype}")
def test_numpy_values_come_back(save, value):
    read = read_checkpoint(save({"value": value}))["value"]
    assert type(read) is type(value) and read.dtype == value.dtype
    np.testing.assert_array_equal(read, value)


@pytest.mark.parametrize("written_by, core", [("NumPy 1", b"numpy.core."), ("NumPy 2", b"numpy._core.")])
def test_the_pickles_of_numpy_1_and_2_are_read(tmp_path, written_by, core):
    path = tmp_path / "checkpoint.pth"
    torch.save({"loss": HistoryBuffer([1.0, 2.0], [1, 1]), "best": np.float64(0.5)}, path)
    here = b"numpy._core." if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else b"numpy.core."
    edit_pickle(path, here, core)
    read = read_checkpoint(path)
    assert read["loss"].mean() == 1.5 and read["best"] == 0.5


def test_the_config_of_a_data_set_comes_back(save):
    read = read_checkpoint(save({"meta": {"dataset_meta": ConfigDict(classes=("a",), more=dict(palette=[(1, 2, 3)]))}}))
    meta = read["meta"]["dataset_meta"]
    assert type(meta) is ConfigDict and meta.more.palette == [(1, 2, 3)]


def test_tensors_go_where_map_location_says(save):
    assert read_checkpoint(save({"w": torch.ones(2)}), map_location="meta")["w"].device.type == "meta"


# --- what is no checkpoint --------------------------------------------------------------------------------------------


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "weights_only" not in message, "no error may advise to read unsafely"
    return message


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    assert "no such checkpoint" in error_of(tmp_path / "absent.pth")


def test_a_folder_is_said_to_be_one(tmp_path):
    assert "this is a folder" in error_of(tmp_path)


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    (tmp_path / "empty.pth").touch()
    assert "empty (0 bytes)" in error_of(tmp_path / "empty.pth")


@pytest.mark.parametrize("kept", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_checkpoint_cut_short_is_said_to_be_so(save, kept):
    path = save({"state_dict": {"w": torch.randn(50, 50)}, "loss": HistoryBuffer([1.0], [1])})
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * kept)])
    assert "cut short" in error_of(path) and "download it again" in error_of(path)


@pytest.mark.parametrize("content", [
    b"<!DOCTYPE html><html>404</html>", b"hello", b"\x00" * 64, b"\x80\x02", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"S.",
    b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94K\x01a.",
])
def test_another_kind_of_file_is_said_to_be_no_checkpoint(tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    assert "no checkpoint at all" in error_of(path) and "written by torch.save" in error_of(path)


def test_a_record_without_the_bytes_of_its_checksum_is_refused_by_name(save):
    path = save({"w": torch.full((9,), 3.0)})
    path.write_bytes(path.read_bytes().replace(torch.tensor(3.0).numpy().tobytes(), b"\0\0\0\0"))
    if zipfile.is_zipfile(path):
        assert "Bad CRC-32 for file 'checkpoint/data/0'" in error_of(path) and "download it again" in error_of(path)
    else:
        assert torch.equal(read_checkpoint(path)["w"], torch.zeros(9))  # the older format has none


@contextmanager
def without_checksums() -> Iterator[None]:
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(True)


@pytest.mark.parametrize("saving", [without_checksums, torch.serialization.skip_data])
def test_a_file_without_checksums_is_read(saving, tmp_path):
    with saving():
        torch.save({"w": torch.ones(9), "note": 1}, tmp_path / "good.pth")
    assert read_checkpoint(tmp_path / "good.pth")["note"] == 1


def test_a_file_is_read_from_its_position():
    content = io.BytesIO(b"before")
    content.seek(6)
    torch.save({"w": torch.ones(2)}, content, _use_new_zipfile_serialization=False)
    content.seek(6)
    assert torch.equal(load_safely(torch.load, content)["w"], torch.ones(2))


def test_a_torchscript_archive_is_no_checkpoint(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "script.pth")
    assert "TorchScript program" in error_of(tmp_path / "script.pth")


def test_a_file_that_may_not_be_read_is_said_to_be_so(save, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    path = save({"w": torch.ones(2)})
    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read (Permission denied)" in error_of(path)


@pytest.mark.parametrize("kept", [0, 4, 30, -1])
def test_a_safetensors_file_is_read_by_its_name_or_said_to_be_damaged(tmp_path, kept):
    path = tmp_path / "weights.safetensors"
    save_file({"w": torch.arange(3.0)}, path)
    assert torch.equal(read_checkpoint(path)["state_dict"]["w"], torch.arange(3.0))
    path.write_bytes(path.read_bytes()[:kept])
    error_of(path)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2), "text", None])
def test_what_is_no_dict_is_refused_by_its_type(save, content):
    assert "expected a dict" in error_of(save(content)) and type(content).__name__ in error_of(save(content))


# --- what is more than data -------------------------------------------------------------------------------------------


class Call:
    """Pickles as the call of a function; unpickled by pickle itself, it runs."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def canary(tmp_path) -> Path:
    """A file that malicious pickles would write; it must never appear."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code in a checkpoint has run"


def test_the_canary_is_alive(tmp_path):
    """The pickles of this file do run under plain pickle: that the canary stays away means something."""
    pickle.loads(pickle.dumps({"state_dict": [Call(os.system, f"touch {tmp_path / 'alive'}")]}))
    assert (tmp_path / "alive").exists()


@pytest.mark.parametrize("content", [
    lambda call: call, lambda call: {"state_dict": {"w": torch.ones(2)}, "meta": {"deep": [{"in": (1, call)}]}},
    lambda call: {"loss": HistoryBuffer([1.0], [1]), "call": call},
])
def test_a_system_call_is_refused_by_name(save, canary, content):
    message = error_of(save(content(Call(os.system, f"touch {canary}"))))
    assert f"{os.system.__module__}.system" in message and "nothing in it ran" in message


@pytest.mark.parametrize("function", [eval, exec])
def test_a_builtin_is_refused_by_name(save, canary, function):
    assert function.__name__ in error_of(save({"a": Call(function, f"open({str(canary)!r}, 'w')")}))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_with_a_system_call_is_refused(tmp_path, canary, protocol):
    path = tmp_path / "plain.pth"
    path.write_bytes(pickle.dumps(Call(os.system, f"touch {canary}"), protocol))
    error_of(path)


def getattr_chain(*names: str) -> Call:
    """getattr(getattr(HistoryBuffer, names[0]), names[1]) ..., as a pickle would write it."""
    value = HistoryBuffer
    for name in names:
        value = Call(getattr, value, name)
    return value


@pytest.mark.parametrize(
    "names", [("__init__", "__globals__"), ("__subclasses__",), ("statistics",), ("min", "__globals__")]
)
def test_getattr_resolves_nothing_but_the_statistics_of_a_history_buffer(save, names):
    assert "builtins.getattr" in error_of(save({"a": getattr_chain(*names)}))


def test_getattr_on_anything_else_is_refused(save):
    assert "builtins.getattr" in error_of(save({"a": Call(getattr, np.ndarray, "tofile")}))


def test_getattr_is_refused_even_where_somebody_allowed_it(save):
    with torch.serialization.safe_globals([getattr, HistoryBuffer]):
        assert "builtins.getattr" in error_of(save({"a": getattr_chain("__init__", "__globals__")}))


def test_a_checkpoint_cannot_replace_the_statistics_of_history_buffers(save):
    buffer = HistoryBuffer([1.0, 3.0], [1, 1])
    buffer._statistics_methods = {"mean": HistoryBuffer.max, "planted": HistoryBuffer.max}
    assert b"planted" in pickle.dumps(buffer)
    read = read_checkpoint(save({"loss": buffer}))["loss"]
    assert read.statistics("mean") == 2.0
    assert "planted" not in HistoryBuffer._statistics_methods


@pytest.mark.parametrize("value", [np.array(["cat"]), np.array([{}]), np.zeros(2, [("a", "f4")]), np.float32])
def test_arrays_of_anything_but_numbers_are_refused_by_name(save, value):
    assert "numpy." in error_of(save({"value": value}))


def test_a_pickle_cannot_set_the_flags_of_a_numpy_dtype(tmp_path):
    """With all flags set, NumPy would take the numbers for addresses of objects."""
    path = tmp_path / "checkpoint.pth"
    torch.save({"loss": np.arange(3.0)}, path)
    edit_pickle(path, b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t", b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ft")
    dtype = read_checkpoint(path)["loss"].dtype
    assert dtype == np.float64 and dtype.flags == 0 and not dtype.hasobject


def test_the_environment_cannot_switch_safety_off(save, canary, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    error_of(save({"a": Call(os.system, f"touch {canary}")}))


# --- the user's own allow-list ----------------------------------------------------------------------------------------


class Own:
    pass


def test_what_the_user_allows_is_read_and_stays_allowed(save):
    path = save({"own": Own()})
    assert Own.__name__ in error_of(path)
    with torch.serialization.safe_globals([Own, HistoryBuffer]):
        before = set(torch.serialization.get_safe_globals())
        assert isinstance(read_checkpoint(path)["own"], Own)
        assert set(torch.serialization.get_safe_globals()) == before


def test_reading_leaves_nothing_allowed(save, tmp_path):
    path = save({"loss": HistoryBuffer([1.0], [1])})
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(path)
    path.write_bytes(path.read_bytes()[:100])
    error_of(path)
    assert set(torch.serialization.get_safe_globals()) == before
