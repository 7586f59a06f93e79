"""Whatever is wrong with an input, there is one clear error, no code runs, no file is left, and the source stays."""
import errno
import io
import marshal
import os
import pickle
import resource
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pickles as p
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS, DefaultScope
from safetensors.torch import save as to_safetensors

from ce_mm.checkpoints.convert import convert
from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint
from ce_mm.checkpoints.verify import verify

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:Validating sparse tensor")


class Place:
    """Where a case happens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "epoch_1.pth"
        self.destination = folder / "new" / "backbone.pth"
        self.canary = folder / "canary"  # what code in a checkpoint would write


#: Makes a case of a place with a good checkpoint, and says what holds while it is converted, if anything.
Prepare = Callable[[Place], AbstractContextManager | None]


BACKBONE = dict(type="CEResNet", depth=18, stem_channels=8, base_channels=8)


@pytest.fixture(scope="module")
def good() -> bytes:
    """A classifier as mmpretrain's training saves it."""
    config = dict(
        type="ImageClassifier",
        backbone=BACKBONE,
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=4, in_channels=64),
    )
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(config)
    return zipped(dict(meta=dict(epoch=1), state_dict=model.state_dict(), optimizer=dict(state={})))


@pytest.fixture
def place(good, tmp_path) -> Place:
    place = Place(tmp_path)
    place.source.write_bytes(good)
    return place


def zipped(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


# --- a file that is damaged or something else -------------------------------------------------------------------------


def of(content: bytes | Callable[[bytes], bytes], name: str = "epoch_1.pth") -> Prepare:
    """The source has this content, or what a function makes of the good one."""

    def prepare(place: Place) -> None:
        changed = content(place.source.read_bytes()) if callable(content) else content
        place.source.unlink()
        place.source = place.folder / name
        place.source.write_bytes(changed)

    return prepare


def flip(good: bytes, position: int) -> bytes:
    return good[:position] + bytes([good[position] ^ 0xFF]) + good[position + 1 :]


def archive(**files: bytes) -> bytes:
    """A tar file."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, value in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(value)
            tar.addfile(info, io.BytesIO(value))
    return content.getvalue()


def torch_script() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), file)
    return file.getvalue()


def folder(place: Place) -> None:
    place.source.unlink()
    place.source.mkdir()


def missing(place: Place) -> None:
    place.source.unlink()


def forbidden(method: str) -> Prepare:
    return lambda place: mock.patch.object(Path, method, side_effect=PermissionError(errno.EACCES, "Permission denied"))


DAMAGED = {
    "no bytes": (of(b""), "empty (0 bytes)"),
    "cut after a byte": (of(lambda good: good[:1]), "cut short"),
    "cut in the first header": (of(lambda good: good[:20]), "cut short"),
    "cut in the pickle": (of(lambda good: good[:5_000]), "cut short"),
    "cut in half": (of(lambda good: good[: len(good) // 2]), "cut short"),
    "cut in the directory": (of(lambda good: good[:-1_000]), "cut short"),
    "cut by a byte": (of(lambda good: good[:-1]), "cut short"),
    "its first byte flipped": (of(lambda good: flip(good, 0)), "damaged"),
    "a byte of the pickle flipped": (of(lambda good: flip(good, 300)), "damaged"),
    "a byte of the directory flipped": (of(lambda good: flip(good, good.rfind(b"PK\x01\x02"))), "damaged"),
    "zeros": (of(bytes(4096)), "no checkpoint at all"),
    "a web page": (of(b"<!DOCTYPE html><html>404</html>"), "no checkpoint at all"),
    "a picture": (of(b"\x89PNG\r\n\x1a\n" + bytes(99)), "no checkpoint at all"),
    "a zip of something else": (of(p.zip_file(b"").replace(b"data.pkl", b"text.txt")), "no checkpoint at all"),
    "a wrong magic number": (of(pickle.dumps(1, 2) * 5), "magic number"),
    "a tar archive": (of(archive(storages=b"", tensors=b"", pickle=b"")), "tar archive"),
    "a TorchScript program": (of(torch_script()), "TorchScript program"),
    "a folder": (folder, "this is a folder"),
    "nothing there": (missing, "no such checkpoint"),
    "no permission": (forbidden("open"), "Permission denied"),
    "safetensors, cut": (of(to_safetensors({"w": torch.ones(99)})[:-1], "w.safetensors"), "damaged"),
    "safetensors with a header of terabytes": (of(struct.pack("<Q", 10**13) + b"{}", "w.safetensors"), "damaged"),
    "PyTorch's file by safetensors' name": (of(lambda good: good, "w.safetensors"), "damaged"),
}


# --- a state dict of another network, or a spoilt one -----------------------------------------------------------------

CONV, VARIANCE = "backbone.layer3.1.conv1.weight", "backbone.layer3.1.bn1.running_var"
WHITENING, COUNT = "backbone.bn1.bd.running_whitening", "backbone.layer3.1.bn1.num_batches_tracked"


def spoilt(spoil: Callable[[dict], object]) -> Prepare:
    """A function changes the weights."""

    def prepare(place: Place) -> None:
        checkpoint = torch.load(place.source)
        spoil(checkpoint["state_dict"])
        place.source.write_bytes(zipped(checkpoint))

    return prepare


def changed(name: str, change: Callable[[torch.Tensor], object]) -> Prepare:
    return spoilt(lambda weights: weights.update({name: change(weights[name])}))


SPOILT = {
    "a list": (of(zipped([1, 2])), "expected a dict"),
    "an empty dict": (of(zipped({})), "expected weights"),
    "a text for a state dict": (of(zipped({"state_dict": "text"})), "weights"),
    "a key missing": (spoilt(lambda weights: weights.pop(CONV)), "layer3.1.conv1.weight"),
    "a buffer missing": (spoilt(lambda weights: weights.pop(VARIANCE)), "layer3.1.bn1.running_var"),
    "a key too many": (spoilt(lambda weights: weights.update({"backbone.extra": torch.ones(1)})), "backbone.extra"),
    "a key renamed": (spoilt(lambda weights: weights.update({f"{CONV}s": weights.pop(CONV)})), "layer3.1.conv1.weight"),
    "a key that is a number": (spoilt(lambda weights: weights.update({7: torch.ones(1)})), "7"),
    "another shape": (changed(CONV, lambda value: value[:3]), "(3, 32, 3, 3)"),
    "another number of dimensions": (changed(CONV, torch.flatten), "(9216,)"),
    "another group size": (changed(WHITENING, lambda value: torch.ones(2, 4, 5)), "running_whitening"),
    "whole numbers for weights": (changed(CONV, torch.Tensor.int), "torch.int32"),
    "complex numbers": (changed(CONV, lambda value: value + 0j), "torch.complex64"),
    "a count in fractions": (changed(COUNT, torch.Tensor.float), "torch.float32"),
    "NaN": (changed(CONV, lambda value: value.fill_(float("nan"))), "NaN"),
    "infinity": (changed(VARIANCE, lambda value: value.fill_(float("inf"))), "infinite"),
    "a negative variance": (changed(VARIANCE, torch.neg), "running_var"),
    "a text for a tensor": (changed(CONV, lambda value: "text"), CONV),
    "a sparse tensor": (changed(CONV, torch.Tensor.to_sparse), CONV),
    "a tensor without numbers": (changed(CONV, lambda value: value.to("meta")), CONV),
}


# --- a destination that cannot be written -----------------------------------------------------------------------------


def at(make: Callable[[Place], Path]) -> Prepare:
    def prepare(place: Place) -> None:
        place.destination = make(place)

    return prepare


def a_file(path: Path) -> Path:
    path.write_text("mine")
    return path


def a_link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def a_folder(path: Path) -> Path:
    path.mkdir()
    return path


def config_there(place: Place) -> None:
    a_file(a_folder(place.destination.parent) / "backbone.py")


def full_disk(files: int) -> Prepare:
    """The disk has room for so many whole files, and for half of another."""

    def prepare(place: Place) -> AbstractContextManager:
        written, write = [], Path.write_bytes

        def write_half(path: Path, content: bytes) -> None:
            written.append(path)
            if len(written) <= files:
                write(path, content)
                return
            write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        return mock.patch.object(Path, "write_bytes", write_half)

    return prepare


@contextmanager
def small_files_only(place: Place) -> Iterator[None]:
    """The system itself stops the writing of a large file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


DESTINATIONS = {
    "a file there": (at(lambda place: a_file(place.folder / "mine.pth")), "exists already"),
    "a folder there": (at(lambda place: a_folder(place.folder / "mine.pth")), "is a folder"),
    "the source": (at(lambda place: place.source), "from which it would be made"),
    "the source by another way": (at(lambda place: place.folder / "x" / ".." / "epoch_1.pth"), "epoch_1.pth"),
    "a link to the source": (
        at(lambda place: a_link(place.folder / "link.pth", place.source)), "from which it would be made"
    ),
    "a link to nothing": (at(lambda place: a_link(place.folder / "link.pth", place.folder / "no")), "exists already"),
    "a config there": (config_there, "backbone.py exists already"),
    "a file for a folder": (at(lambda place: place.source / "backbone.pth"), "is a file"),
    "another suffix": (at(lambda place: place.folder / "backbone.txt"), ".safetensors"),
    "no permission to write": (forbidden("write_bytes"), "Permission denied"),
    "a full disk": (full_disk(0), "No space left"),
    "a disk full after the first file": (full_disk(1), "No space left"),
    "small files only": (small_files_only, "File too large"),
}


# --- a pickle that would run code -------------------------------------------------------------------------------------


def shell(make: Callable[[bytes], bytes]) -> Callable[[Path], bytes]:
    """A pickle with a shell command in it, as a pickled text."""
    return lambda canary: make(p.text(f"touch {canary}"))


def program(make: Callable[[str], bytes]) -> Callable[[Path], bytes]:
    """A pickle with a Python program in it."""
    return lambda canary: make(f"open({str(canary)!r}, 'w').close()")


SYSTEM, RUNS, GETATTR = p.name("os", "system"), p.name("pickles", "Runs"), p.name("builtins", "getattr")


def through_an_allowed_class(code: str) -> bytes:
    """HistoryBuffer.__init__.__globals__.get('__builtins__').get('eval')(code)."""
    value = p.name("mmengine.logging.history_buffer", "HistoryBuffer")
    for attribute in ("__init__", "__globals__", "get"):
        value = p.call(GETATTR, value, p.text(attribute))
    get = p.call(GETATTR, p.call(value, p.text("__builtins__")), p.text("get"))
    return p.checkpoint(p.call(p.call(get, p.text("eval")), p.text(code)))


def compiled(code: str) -> bytes:
    loaded = p.call(p.name("marshal", "loads"), p.binary(marshal.dumps(compile(code, "pickle", "exec"))))
    return p.checkpoint(p.call(p.call(p.name("types", "FunctionType"), loaded, b"}")))


def array_of_objects(command: str) -> bytes:
    class Call:
        def __reduce__(self) -> tuple:
            return os.system, (command,)

    return pickle.dumps({"state_dict": {"w": np.array([Call()])}}, 2)


ATTACKS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "os.system": (shell(lambda text: p.checkpoint(p.call(SYSTEM, text))), "os.system"),
    "posix.system": (shell(lambda text: p.checkpoint(p.call(p.name("posix", "system"), text))), "posix.system"),
    "subprocess": (
        shell(lambda text: p.checkpoint(p.call(p.name("subprocess", "getoutput"), text))), "subprocess.getoutput"
    ),
    "eval": (program(lambda code: p.checkpoint(p.call(p.name("builtins", "eval"), p.text(code)))), "eval"),
    "exec": (program(lambda code: p.checkpoint(p.call(p.name("builtins", "exec"), p.text(code)))), "exec"),
    "eval of Python 2": (
        program(lambda code: p.checkpoint(p.call(p.name("__builtin__", "eval"), p.text(code)))), "eval"
    ),
    "a compiled function": (program(compiled), "types.FunctionType"),
    "getattr of an import": (
        shell(lambda text: p.checkpoint(p.call(
            p.call(GETATTR, p.call(p.name("importlib", "import_module"), p.text("os")), p.text("system")), text
        ))),
        "importlib.import_module",
    ),
    "getattr of an allowed class": (program(through_an_allowed_class), "builtins.getattr"),
    "attrgetter": (
        shell(lambda text: p.checkpoint(p.call(
            p.call(
                p.call(p.name("operator", "attrgetter"), p.text("system")),
                p.call(p.name("builtins", "__import__"), p.text("os")),
            ),
            text,
        ))),
        "operator.attrgetter",
    ),
    "a key of a dict": (
        shell(lambda text: b"\x80\x02}" + p.text("a") + b"}}" + p.call(SYSTEM, text) + p.NONE + b"s" + p.NONE + b"s."),
        "os.system",
    ),
    "an optimizer's state": (
        shell(lambda text: b"\x80\x02}" + p.text("optimizer") + b"}" + p.number(0) + p.call(SYSTEM, text) + b"ss."),
        "os.system",
    ),
    "a tensor's hooks": (
        shell(lambda text: p.checkpoint(p.call(
            p.name("torch._utils", "_rebuild_parameter"), p.NONE, p.FALSE, p.call(SYSTEM, text)
        ))),
        "os.system",
    ),
    "a function from the memo": (
        shell(lambda text: p.checkpoint(b"]" + SYSTEM + b"q\x05ah\x05" + p.group(text) + b"R")), "os.system"
    ),
    "INST": (shell(lambda text: b"(" + text + b"ios\nsystem\n."), "Unsupported operand"),
    "OBJ": (shell(lambda text: b"(" + SYSTEM + text + b"o."), "os.system"),
    "STACK_GLOBAL": (
        shell(lambda text: b"\x80\x04" + p.text("os") + p.text("system") + b"\x93" + p.group(text) + b"R."),
        "Unsupported operand",
    ),
    "a name with dots": (
        shell(lambda text: b"\x80\x04" + p.call(p.name("torch", "serialization.os.system"), text) + b"."),
        "torch.serialization.os.system",
    ),
    "NEWOBJ": (shell(lambda text: p.checkpoint(p.new(RUNS, text))), "pickles.Runs"),
    "NEWOBJ_EX": (
        shell(lambda text: b"\x80\x04" + RUNS + b")}" + p.text("later") + text + b"s\x92."), "pickles.Runs"
    ),
    "BUILD": (shell(lambda text: p.checkpoint(p.build(p.new(RUNS), text))), "pickles.Runs"),
    "an array of objects": (lambda canary: array_of_objects(f"touch {canary}"), "numpy.dtype"),
    "a pickle in a pickle": (
        shell(lambda text: p.checkpoint(p.call(p.name("_pickle", "loads"), p.binary(p.call(SYSTEM, text) + b".")))),
        "_pickle.loads",
    ),
    "a checkpoint in a pickle": (
        shell(lambda text: p.checkpoint(p.call(
            p.name("torch.storage", "_load_from_bytes"), p.binary(p.legacy_file(p.checkpoint(p.call(SYSTEM, text))))
        ))),
        "torch.storage._load_from_bytes",
    ),
}  # fmt: skip

#: Where in a file such a pickle may stand.
HIDEOUTS: dict[str, Callable[[bytes], bytes]] = {
    "a zip": p.zip_file,
    "the older format": p.legacy_file,
    "a plain pickle": bytes,
}


def attack(make: Callable[[Path], bytes], hide: Callable[[bytes], bytes], name: str = "epoch_1.pth") -> Prepare:
    return lambda place: of(hide(make(place.canary)), name)(place)


def recorded(setting: Callable[[Path], object]) -> Prepare:
    """The source records a config with more than a network in it."""

    def prepare(place: Place) -> None:
        checkpoint = torch.load(place.source)
        checkpoint["meta"]["cfg"] = f"model = dict(backbone={BACKBONE | setting(place.canary)!r})"
        place.source.write_bytes(zipped(checkpoint))

    return prepare


def call(canary: Path) -> dict:
    return dict(type="os.system", command=f"touch {canary}")


RECORDED: dict[str, Callable[[Path], object]] = {
    "an act_cfg": lambda canary: dict(act_cfg=call(canary)),
    "a norm_cfg": lambda canary: dict(norm_cfg=call(canary)),
    "a conv_cfg": lambda canary: dict(conv_cfg=call(canary)),
    "a norm of ce_cfg": lambda canary: dict(ce_cfg=dict(norm=call(canary))),
    "a norm of ce_stem_cfg": lambda canary: dict(ce_stem_cfg=dict(norm=call(canary))),
    "a dict for a number": lambda canary: dict(strides=call(canary)),
    "a scope": lambda canary: dict(act_cfg=dict(type="ReLU", _scope_="os")),
    "a key that is code": lambda canary: dict(
        act_cfg={"type": "ReLU", f"a': __import__('os').system('touch {canary}'), 'b": 1}
    ),
    "a key of ce_cfg that is code": lambda canary: dict(
        ce_cfg={f"a': __import__('os').system('touch {canary}'), 'b": 1}
    ),
}

OS_SYSTEM = ATTACKS["os.system"][0]
CODE = {
    f"{name} in {where}": (attack(make, hide), message)
    for name, (make, message) in ATTACKS.items()
    for where, hide in HIDEOUTS.items()
} | {
    "os.system in the description of the system": (
        attack(OS_SYSTEM, lambda code: p.legacy_file(p.checkpoint(p.NONE), system=code)), "os.system"
    ),
    "os.system in the names of the storages": (
        attack(OS_SYSTEM, lambda code: p.legacy_file(p.checkpoint(p.NONE), keys=code)), "os.system"
    ),
    "os.system in a tar archive": (
        attack(OS_SYSTEM, lambda code: archive(storages=code, tensors=code, pickle=code)), "tar archive"
    ),
    "os.system in constants.pkl": (
        attack(OS_SYSTEM, lambda code: p.zip_file(code, **{"constants.pkl": code})), "TorchScript"
    ),
    "os.system by safetensors' name": (attack(OS_SYSTEM, bytes, "w.safetensors"), "damaged"),
    "a persistent id that is a name": (
        of(p.zip_file(b"\x80\x02}" + p.text("a") + b"Pos.system\ns.")), "Unsupported operand"
    ),
    "a persistent id of a module": (
        of(p.legacy_file(p.checkpoint(p.group(p.text("module"), SYSTEM, p.text("a"), p.text("b")) + b"Q"))), "os.system"
    ),
    "a number of copyreg": (of(p.zip_file(b"\x80\x02\x82\x01.")), "Unsupported operand"),
} | {
    f"{name} in the recorded config": (recorded(setting), "config recorded in it")
    for name, setting in RECORDED.items()
}  # fmt: skip


@pytest.mark.parametrize("make", [make for make, _ in ATTACKS.values()], ids=ATTACKS)
def test_the_code_would_run(make, tmp_path):
    """Under plain pickle, so that its not running elsewhere means something."""
    with suppress(Exception):
        pickle.loads(make(tmp_path / "canary"))
    assert (tmp_path / "canary").exists()


# --- the table --------------------------------------------------------------------------------------------------------

CASES: dict[str, tuple[Prepare, str]] = DAMAGED | SPOILT | DESTINATIONS | CODE


def everything(folder: Path) -> dict[str, object]:
    """All that is in a folder: names, contents, times of change, where links go."""

    def look(path: Path) -> object:
        if path.is_symlink():
            return os.readlink(path)
        return (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else "folder"

    return {str(path.relative_to(folder)): look(path) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("prepare, phrase", CASES.values(), ids=CASES)
def test_a_broken_input_gives_one_clear_error_and_changes_nothing(place, prepare, phrase):
    meanwhile = prepare(place) or nullcontext()
    before = everything(place.folder)
    with meanwhile, pytest.raises(CheckpointError) as caught:
        convert(place.source, place.destination)
    message = str(caught.value)
    assert phrase in message and "\n" not in message and "weights_only" not in message
    assert any(str(path) in message for path in (place.source, place.destination, place.destination.with_suffix(".py")))
    assert everything(place.folder) == before


# --- any bytes --------------------------------------------------------------------------------------------------------

SMALL = {
    "state_dict": {"conv.weight": torch.arange(6.0).reshape(2, 3).t(), "bn.num_batches_tracked": torch.tensor(3)},
    "meta": {"epoch": 1, "cfg": "a = 1"}, "best": np.float64(0.5), "loss": HistoryBuffer([1.0, 2.0], [1, 1]),
}  # fmt: skip


def legacy(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def pickle_in(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as records:
        return records.read("archive/data.pkl")


def around(pickled: bytes) -> bytes:
    """A zip checkpoint, whole but for its pickle."""
    return p.zip_file(pickled, **{"data/0": bytes(24), "data/1": bytes(8)})


#: Name of a file, what is changed, and what is made of that.
FORMATS = {
    "zip": ("any.pth", zipped(SMALL), bytes),
    "the pickle in a zip": ("any.pth", pickle_in(zipped(SMALL)), around),
    "the older format": ("any.pth", legacy(SMALL), bytes),
    "safetensors": (
        "any.safetensors",
        to_safetensors({name: value.contiguous() for name, value in SMALL["state_dict"].items()}),
        bytes,
    ),
}
#: Where, in parts of the whole; how many bytes there are left out; what stands there instead.
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=4)


@pytest.mark.parametrize("name, content, finish", FORMATS.values(), ids=FORMATS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=edits)
def test_a_file_with_any_bytes_changed_is_data_or_an_error(tmp_path, name, content, finish, edits):
    path = tmp_path / name
    for where, count, instead in edits:
        start = int(where * len(content))
        content = content[:start] + instead + content[start + count :]
    path.write_bytes(finish(content))
    try:
        read = read_checkpoint(path)
    except CheckpointError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert isinstance(read, dict)
    with suppress(CheckpointError):
        assert isinstance(verify(read), list)
