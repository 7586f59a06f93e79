"""What a file claims to hold, against what it can hold: looked at before ``torch.load`` makes room for it.

``torch.load(weights_only=True)`` runs no code of a file, but believes most of its numbers. 200 bytes may ask for a
storage of terabytes (in the format before PyTorch 1.6), for ``torch.FloatTensor(10**12)``, for a tensor that repeats
one number 10^12 times, or for records that unfold to a thousand times their size; and a key of a dict that is a tuple
in a tuple, a million levels deep, ends the process. So each pickle is followed once here without doing what it says.
Nor does it look at the checksums of a zip archive, so that flipped bits of a weight would be read as another weight.
(The older format and safetensors have none.)
"""
import io
import mmap
import os
import pickletools
import re
import reprlib
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from pickle import UnpicklingError
from typing import Any, BinaryIO

#: An expanded tensor has more elements than its storage; harmless up to this many.
_EXPANDED = 2**20
#: How many levels of tuples a tuple may hold.
_DEPTH = 100
#: How many items tuples may have that are met again and again.
_SHARED = 2**24
#: The older format: magic number, version, system, content, names of the storages; then the storages themselves.
_LEGACY_PICKLES = 5
#: Of a zip archive: end of the directory, the same for large files, where that is, and what is before each record.
_END, _END_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64, _HEADER = struct.Struct("<4sLQL"), struct.Struct("<4s5H3L2H")
_MOST_32 = 2**32 - 1
#: How many bytes are read at a time for a checksum.
_PIECE = 2**20
_OF_STORAGE = {f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "qtensor")}
_CLASS = r"torch\.((cuda|sparse)\.)*\w*Tensor"
_TENSOR = re.compile(rf"{_CLASS}|torch\.nn\.parameter\.Parameter|torch\.(_utils|_tensor)\._rebuild_\w+")
_ROOM = re.compile(rf"{_CLASS}|torch\.storage\.(Typed|Untyped)Storage")
_AGAIN = "copy or download it again."
_ANEW = "which torch.save never does; save it again with PyTorch."


class ClaimError(UnpicklingError):
    """The file claims more or something else than it holds, or has a form that no checkpoint needs; the text says."""


def check_claims(file: BinaryIO) -> None:
    """Look through what ``torch.load`` is to read, from the file's position on, which stays.

    Raises:
        ClaimError: a claim goes beyond the file, or a checksum is not that of the bytes.
        Exception: of any kind, where the file is damaged.
    """
    start = file.tell()
    try:
        size = file.seek(0, os.SEEK_END) - start
        file.seek(start)
        head = file.read(tarfile.BLOCKSIZE)
        file.seek(start)
        if head.startswith(b"PK\x03\x04"):
            _check_zip(file, size)
        elif head[257:262] == b"ustar":
            raise ClaimError("it is a tar archive, as the first PyTorch wrote; save it again with a later one.")
        else:
            with _never_beyond_the_end(file) as pickles:
                _check_legacy(pickles, start + size, size)
    finally:
        file.seek(start)


def _check_zip(file: BinaryIO, size: int) -> None:
    _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if any(record.filename.endswith("/constants.pkl") for record in records):
            raise ClaimError("it is a TorchScript program, which is more than data; save model.state_dict() instead.")
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
                raise ClaimError(
                    f"its record {record.filename} is compressed, {record.compress_size} bytes for {record.file_size}, "
                    "which torch.save never does; unpack the archive, and pack it without compression (zip -0)."
                )
        claimed = sum(record.file_size for record in records)
        if claimed > size:
            raise ClaimError(f"its records claim {claimed} bytes, but the file has {size}; {_AGAIN}")
        for record, place in _places(file, archive.start_dir, records):
            file.seek(place)
            _check_sum(file, record)
            # PyTorch does not tell capitals from small letters here, and knows no other name than this one.
            if record.orig_filename.lower().endswith("data.pkl"):
                file.seek(place)
                _follow(io.BytesIO(file.read(record.file_size)))


def _check_end(file: BinaryIO, size: int) -> None:
    """That the directory is where the end of the archive says: Python and PyTorch look for it in different ways."""
    file.seek(max(size - _END_64.size - _LOCATOR_64.size - _END.size, 0))
    ending = file.read()
    mark, *_, length, start, comment = _END.unpack(ending[-_END.size :])
    end = size - _END.size
    if ending[-_END.size - _LOCATOR_64.size :].startswith(b"PK\x06\x07"):
        end -= _LOCATOR_64.size + _END_64.size
        mark_64, *_, length_64, start_64 = _END_64.unpack(ending[: _END_64.size])
        place = _LOCATOR_64.unpack(ending[_END_64.size : -_END.size])[2]
        agree = (length, start) == (min(length_64, _MOST_32), min(start_64, _MOST_32))
        if mark_64 != b"PK\x06\x06" or place != end or not agree:
            raise ClaimError(f"its zip archive has two ends that contradict each other, {_ANEW}")
        length, start = length_64, start_64
    if mark != b"PK\x05\x06" or comment or start + length != end:
        raise ClaimError(f"it is damaged or cut short: its zip archive's directory is not where its end says; {_AGAIN}")


def _places(file: BinaryIO, end: int, records: list[zipfile.ZipInfo]) -> list[tuple[zipfile.ZipInfo, int]]:
    """The records and where their content starts: one after the other, from the start of the file to the directory."""
    reached, places = 0, []
    for record in sorted(records, key=lambda record: record.header_offset):
        file.seek(record.header_offset)
        *_, name, extra = _HEADER.unpack(file.read(_HEADER.size))
        if record.header_offset < reached or (reached == 0) != (record.header_offset == 0):
            raise ClaimError(f"its record {record.filename} lies over another, or not at the start, {_ANEW}")
        place = record.header_offset + _HEADER.size + name + extra
        reached = place + record.file_size
        places.append((record, place))
    if reached > end:
        raise ClaimError(f"its last record reaches into the directory, {_ANEW}")
    return places


def _check_sum(file: BinaryIO, record: zipfile.ZipInfo) -> None:
    """That a record's content, from the file's position on, has the checksum written beside it; PyTorch does not look.

    It is 0 where ``torch.serialization.set_crc32_options`` has switched checksums off.
    """
    found, left = 0, record.file_size
    while piece := file.read(min(left, _PIECE)):
        found, left = zlib.crc32(piece, found), left - len(piece)
    if record.CRC not in (0, found):
        raise ClaimError(f"it is damaged: the bytes of its record {record.filename} do not have its checksum; {_AGAIN}")


def _check_legacy(pickles: BinaryIO | mmap.mmap, end: int, size: int) -> None:
    for _ in range(_LEGACY_PICKLES):
        if pickles.tell() == end:
            return  # torch.load will say what is missing
        claimed = sum(_follow(pickles).values())
        if claimed > size:  # each number takes a byte or more
            raise ClaimError(f"its storages claim {claimed} numbers, but the file has {size} bytes; {_AGAIN}")


@contextmanager
def _never_beyond_the_end(file: BinaryIO) -> Iterator[BinaryIO | mmap.mmap]:
    """The file in a form that makes no room for bytes that it lacks, as a BufferedReader does when asked for them."""
    if isinstance(file, io.BufferedReader):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            mapped.seek(file.tell())
            yield mapped
    else:
        yield file


class _Name(str):
    """A function or class that a pickle names."""


class _Tuple(tuple):
    """A tuple that knows how many levels of tuples it holds, and how many items on all levels."""

    depth: int
    items: int


@dataclass(frozen=True, eq=False)
class _Result:
    """What a call would give."""

    name: object
    arguments: _Tuple


def _follow(file: BinaryIO | mmap.mmap) -> dict[int | str, int]:
    """Follow one pickle as torch's unpickler would: numbers, text and tuples as they are, calls looked at, not made.

    Returns:
        How many numbers each storage claims to have.
    """
    stack, marked, memo, storages = [], [], {}, {}
    again = 0  # how many items tuples have that are in the pickle once and used several times
    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO" | "STOP":
                pass
            case "NONE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":  # what they hold has been looked at by then
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                stack.append(argument)
            case "GLOBAL":
                module, name = argument.split(" ")
                stack.append(_Name(f"{'builtins' if module == '__builtin__' else module}.{name}"))
            case "MARK":
                marked.append(stack)
                stack = []
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
                again += getattr(stack[-1], "items", 0)
                if again > _SHARED:  # as keys of dicts they take as many steps
                    raise ClaimError(f"its tuples unfold to more than {_SHARED} items, {_ANEW}")
            case "TUPLE":
                items, stack = stack, marked.pop()
                stack.append(_tuple(items))
            case "EMPTY_TUPLE":
                stack.append(_tuple([]))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(_tuple([stack.pop() for _ in range(int(opcode.name[-1]))][::-1]))
            case "APPEND":
                stack.pop()
            case "SETITEM":
                del stack[-2:]
            case "APPENDS" | "SETITEMS":
                stack = marked.pop()
            case "BINPERSID":
                place = _plain(stack.pop())
                _check_place(place)
                storages[place[2]] = max(place[4], storages.get(place[2], 0))
                stack.append(_Result(_Name("storage"), place))
            case "REDUCE" | "NEWOBJ":
                arguments, name = _plain(stack.pop()), stack.pop()
                _check_call(name, arguments)
                stack.append(_Result(name, arguments))
            case "BUILD":
                state, built = stack.pop(), stack[-1]
                if _gives_tensor(built) and len(_plain(state)) in (3, 4):
                    _check_tensor(state)  # a tensor sets itself on that storage
            case unknown:
                raise UnpicklingError(f"unsupported opcode {unknown}")
    return storages


def _tuple(items: list[Any]) -> _Tuple:
    made = _Tuple(items)
    made.items = 1 + sum(item.items if isinstance(item, _Tuple) else 1 for item in items)
    made.depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
    if made.depth > _DEPTH:
        raise ClaimError(f"it holds tuples within tuples, more than {_DEPTH} levels deep; no checkpoint needs that.")
    return made


def _plain(value: Any) -> _Tuple:
    if not isinstance(value, _Tuple):
        raise ClaimError(f"it computes what a call is given, {_ANEW}")
    return value


def _check_place(place: _Tuple) -> None:
    """``"storage", type, key, location, count``, and one more in the older format."""
    if len(place) < 5 or not isinstance(place[2], int | str) or type(place[4]) is not int:
        raise ClaimError(f"it computes the place of a storage, {_ANEW}")


def _check_call(name: object, arguments: _Tuple) -> None:
    if not isinstance(name, _Name):
        return  # torch does not call it, and says so
    if name in _OF_STORAGE:
        _check_tensor(arguments)
    elif name == "torch._tensor._rebuild_from_type_v2":
        function, _, inner, _ = arguments
        _check_call(function, _plain(inner))
    elif (
        (_ROOM.fullmatch(name) and arguments)
        or (name in ("builtins.bytes", "builtins.bytearray") and arguments and not _is_text(arguments[0]))
        or (name.endswith(".multiarray._reconstruct") and arguments[1] != (0,))
        or name == "numpy.ndarray"
    ):
        raise ClaimError(f"it asks {name} to make room, {_ANEW}")


def _gives_tensor(value: object) -> bool:
    return isinstance(value, _Result) and isinstance(value.name, _Name) and bool(_TENSOR.fullmatch(value.name))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, _Result) and value.name == "_codecs.encode")


def _check_tensor(arguments: _Tuple) -> None:
    """``storage, offset, size, stride``, and more that says nothing about room."""
    storage, offset, size, stride = arguments[:4]
    if isinstance(size, _Result) and size.name == "torch.Size":
        (size,) = size.arguments
    numbers = (offset, *_plain(size), *_plain(stride))
    if not isinstance(storage, _Result) or storage.name != "storage" or any(type(n) is not int for n in numbers):
        raise ClaimError(f"it computes the place of a tensor in its storage, {_ANEW}")
    if 0 in size:
        return
    held = storage.arguments[4]
    reach = 1 + offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if reach > held or any(count > max(held, _EXPANDED) for count in accumulate(size, mul)):
        raise ClaimError(
            f"a tensor of size {reprlib.repr(size)} and stride {reprlib.repr(stride)} claims more than the {held} "
            f"numbers in its storage; {_AGAIN}"
        )
