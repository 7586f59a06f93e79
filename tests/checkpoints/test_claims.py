"""What goes beyond a file is refused before anything makes room for it; what torch.save writes is not."""
import io
import zipfile
from contextlib import contextmanager

import numpy as np
import pickles as p
import pytest
import torch
from torch import nn

from ce_mm.checkpoints.claims import ClaimError, check_claims
from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint

MANY = 10**12
TWO = p.storage(2)
SMALL = p.tensor(TWO, (2,), (1,))

VALUES = {
    "a size beyond the storage": (p.tensor(TWO, (MANY,), (1,)), "claims more than the 2 numbers"),
    "an offset beyond the storage": (p.tensor(TWO, (2,), (1,), offset=MANY), "claims more than the 2 numbers"),
    "a stride beyond the storage": (p.tensor(TWO, (2,), (MANY,)), "claims more than the 2 numbers"),
    "one number repeated": (p.tensor(TWO, (MANY,), (0,)), "claims more than the 2 numbers"),
    "sizes whose product overflows": (p.tensor(TWO, (2**62, 4, 2**62), (0, 0, 0)), "claims more than the 2 numbers"),
    "a size that is a torch.Size": (
        p.call(
            p.name("torch._utils", "_rebuild_tensor"), TWO, p.number(0),
            p.call(p.name("torch", "Size"), p.numbers(MANY)), p.numbers(0),
        ),
        "claims more than the 2 numbers",
    ),
    "a size in a list": (
        p.call(
            p.name("torch._utils", "_rebuild_tensor"), TWO, p.number(0), b"]" + p.number(MANY) + b"a", p.numbers(1)
        ),
        "computes",
    ),
    "a tensor set on its storage anew": (
        p.build(SMALL, p.group(TWO, p.number(0), p.numbers(MANY), p.numbers(0))), "claims more than the 2 numbers",
    ),
    "a tensor on a storage made empty": (
        p.tensor(p.call(p.name("torch.storage", "TypedStorage")), (MANY,), (1,)), "computes the place"
    ),
    "a quantised tensor": (
        p.call(
            p.name("torch._utils", "_rebuild_qtensor"), p.storage(2, kind="QInt8Storage"), p.number(0),
            p.numbers(MANY), p.numbers(1), p.group(p.name("torch", "per_tensor_affine"), b"G" + bytes(8), p.number(0)),
            p.FALSE, p.HOOKS,
        ),
        "claims more than the 2 numbers",
    ),
    "a tensor made by its size": (p.call(p.name("torch", "FloatTensor"), p.number(MANY)), "torch.FloatTensor"),
    "a new tensor of a size": (p.new(p.name("torch", "Tensor"), p.number(MANY)), "torch.Tensor"),
    "a tensor made by another's name": (
        p.call(
            p.name("torch._tensor", "_rebuild_from_type_v2"), p.name("torch", "FloatTensor"), p.name("torch", "Tensor"),
            p.numbers(MANY), b"}",
        ),
        "torch.FloatTensor",
    ),
    "a storage made by its size": (p.call(p.name("torch.storage", "UntypedStorage"), p.number(MANY)), "UntypedStorage"),
    "a bytearray of a size": (p.call(p.name("builtins", "bytearray"), p.number(MANY)), "builtins.bytearray"),
    "bytes of a size, in Python 2's name": (p.call(p.name("__builtin__", "bytes"), p.number(MANY)), "builtins.bytes"),
    "an array of a size": (p.new(p.name("numpy", "ndarray"), p.numbers(MANY)), "numpy.ndarray"),
    "an array of objects": (p.call(p.name("numpy", "ndarray"), p.numbers(5), p.text("O")), "numpy.ndarray"),
    "an array to fill of a size": (
        p.call(
            p.name("numpy.core.multiarray", "_reconstruct"), p.name("numpy", "ndarray"), p.numbers(MANY), p.text("f8")
        ),
        "_reconstruct",
    ),
    "tuples a million levels deep": (b")" + b"\x85" * 10**6, "levels deep"),
}  # fmt: skip


@pytest.mark.parametrize("value, message", VALUES.values(), ids=VALUES)
def test_a_value_that_claims_more_than_the_file_holds_is_refused(value, message):
    with pytest.raises(ClaimError, match=message):
        check_claims(io.BytesIO(p.zip_file(p.checkpoint(value))))


@pytest.mark.parametrize("value, message", VALUES.values(), ids=VALUES)
def test_so_it_is_in_the_older_format(value, message):
    value = value.replace(TWO, p.storage(2, p.NONE))
    with pytest.raises(ClaimError, match=message):
        check_claims(io.BytesIO(p.legacy_file(p.checkpoint(value))))


def test_a_storage_of_the_older_format_may_not_be_larger_than_the_file():
    value = p.tensor(p.storage(MANY, p.NONE), (2,), (1,))
    with pytest.raises(ClaimError, match=f"claim {MANY} numbers"):
        check_claims(io.BytesIO(p.legacy_file(p.checkpoint(value), MANY)))


def test_a_key_among_the_storages_of_the_older_format_is_looked_at_too():
    with pytest.raises(ClaimError, match="levels deep"):
        check_claims(io.BytesIO(p.legacy_file(p.checkpoint(p.NONE), keys=b"\x80\x02])" + b"\x85" * 10**6 + b"a.")))


def test_a_text_longer_than_a_file_of_the_older_format_is_no_text(tmp_path):
    (tmp_path / "long.pth").write_bytes(p.legacy_file(p.checkpoint(b"X\xff\xff\xff\xff")))
    with pytest.raises(CheckpointError, match="expected 4294967295 bytes"):
        read_checkpoint(tmp_path / "long.pth")


def test_compressed_records_are_refused_unread():
    bomb = p.zip_file(p.checkpoint(SMALL), zipfile.ZIP_DEFLATED, **{"data/0": bytes(10**7)})
    with pytest.raises(ClaimError, match=r"data\.pkl is compressed"):
        check_claims(io.BytesIO(bomb))


def test_records_that_share_their_bytes_are_refused():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", p.checkpoint(SMALL))
        archive.writestr("archive/data/0", bytes(1000))
        archive.filelist += [archive.getinfo("archive/data/0")] * 1000
    content.seek(0)
    with pytest.raises(ClaimError, match=r"records claim \d+ bytes, but the file has"):
        check_claims(content)


def test_a_record_without_the_bytes_of_its_checksum_is_refused():
    content = io.BytesIO()
    torch.save({"w": torch.full((9,), 3.0)}, content)
    with pytest.raises(ClaimError, match=r"data/0 do not have its checksum"):
        check_claims(io.BytesIO(content.getvalue().replace(torch.tensor(3.0).numpy().tobytes(), b"\0\0\0\0")))


@contextmanager
def without_checksums():
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


def two_directories() -> bytes:
    """Behind an archive another one, with its end: Python reads the second directory, PyTorch the first."""
    pickles = [p.checkpoint(value) for value in (VALUES["one number repeated"][0], SMALL)]
    bad, good = (p.zip_file(pickled.ljust(max(map(len, pickles)))) for pickled in pickles)
    return bad[:-22] + good[:-22] + good[-22:-6] + bad[-6:]


def test_an_archive_with_two_directories_is_refused():
    with pytest.raises(ClaimError, match="not where its end says"):
        check_claims(io.BytesIO(two_directories()))


def test_so_is_one_behind_something_else_or_in_front_of_it():
    good = p.zip_file(p.checkpoint(SMALL))
    for content in (good + good, good + bytes(9)):
        with pytest.raises(ClaimError, match="not where its end says"):
            check_claims(io.BytesIO(content))


def test_the_two_ends_of_an_archive_must_agree():
    saved = io.BytesIO()
    torch.save({"w": torch.ones(2)}, saved)
    content = bytearray(saved.getvalue())
    check_claims(io.BytesIO(content))
    content[-6] ^= 1
    with pytest.raises(ClaimError, match="two ends that contradict"):
        check_claims(io.BytesIO(content))


def test_a_record_within_another_is_refused():
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data/0", bytes(8))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", p.checkpoint(SMALL))
        archive.writestr("archive/data/1", inner.getvalue())
        hidden = zipfile.ZipInfo("archive/data/0")
        hidden.header_offset = content.getvalue().index(inner.getvalue())
        hidden.file_size, hidden.compress_size, hidden.CRC = 8, 8, 0
        archive.filelist.append(hidden)
    content.seek(0)
    with pytest.raises(ClaimError, match="lies over another"):
        check_claims(content)


def test_tuples_that_unfold_to_more_than_the_file_holds_are_refused():
    doubled = b")" + b"q\x00h\x00\x86" * 40
    with pytest.raises(ClaimError, match="unfold to more than"):
        check_claims(io.BytesIO(p.zip_file(b"\x80\x02}" + doubled + p.NONE + b"s.")))


def test_the_pickle_is_found_in_capital_letters_too():
    value = p.tensor(TWO, (MANY,), (0,))
    with pytest.raises(ClaimError):
        check_claims(io.BytesIO(p.zip_file(p.checkpoint(p.NONE), **{"DATA.PKL": p.checkpoint(value)})))


def test_torch_does_not_get_to_see_it(tmp_path, monkeypatch):
    (tmp_path / "bomb.pth").write_bytes(p.zip_file(p.checkpoint(VALUES["one number repeated"][0])))
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(CheckpointError, match=r"bomb\.pth: a tensor of size"):
        read_checkpoint(tmp_path / "bomb.pth")


# --- what torch.save writes -------------------------------------------------------------------------------------------


def with_a_note(value: torch.Tensor) -> torch.Tensor:
    value.note = {"a": 1}
    return value


BASE = torch.randn(6, 4)
KINDS = {
    "float16": BASE.half(), "bfloat16": BASE.bfloat16(), "bool": BASE > 0, "complex": BASE.to(torch.complex64),
    "scalar": torch.tensor(3), "empty": torch.zeros(3, 0, 2), "views of one storage": [BASE[1:3], BASE.t(), BASE[:, 1]],
    "channels last": torch.randn(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "expanded": torch.eye(16).expand(4, 16, 16), "parameter": nn.Parameter(BASE), "with a note": with_a_note(BASE + 1),
    "noted parameter": with_a_note(nn.Parameter(BASE)), "sparse": torch.eye(3).to_sparse(),
    "bytes": [b"", b"abc", bytearray(b"abc")],
    "array": np.arange(6.0).reshape(2, 3), "size": torch.Size([2, 3]), "numbers": [10**30, -5, 1.5, True, None, 1 + 2j],
    "generator": torch.get_rng_state(), "nested": {(1, (2, "a")): [{"b": ()}, {3}]},
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("value", KINDS.values(), ids=KINDS)
def test_what_torch_saves_passes(value, zipped, tmp_path):
    torch.save({"value": value}, tmp_path / "good.pth", _use_new_zipfile_serialization=zipped)
    with open(tmp_path / "good.pth", "rb") as file:
        check_claims(file)
        assert file.tell() == 0


def test_an_optimizers_state_passes():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = io.BytesIO()
    torch.save(dict(state_dict=model.state_dict(), optimizer=optimizer.state_dict()), content)
    content.seek(0)
    check_claims(content)


def test_a_file_is_looked_at_from_its_position():
    content = io.BytesIO(b"before" + p.legacy_file(p.checkpoint(p.tensor(p.storage(2, p.NONE), (2,), (1,)))))
    content.seek(6)
    check_claims(content)
    assert content.tell() == 6
