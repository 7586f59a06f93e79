"""Pickles written by hand, opcode by opcode, and files around them: what ``torch.save`` would never write."""
import io
import os
import pickle
import struct
import zipfile

import torch


def name(module: str, qualified: str) -> bytes:
    return f"c{module}\n{qualified}\n".encode()


def number(value: int) -> bytes:
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def binary(content: bytes) -> bytes:
    """Bytes, as protocol 2 writes them."""
    return call(name("_codecs", "encode"), text(content.decode("latin1")), text("latin1"))


def group(*items: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def numbers(*values: int) -> bytes:
    return group(*map(number, values))


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + group(*arguments) + b"R"


def new(kind: bytes, *arguments: bytes) -> bytes:
    return kind + group(*arguments) + b"\x81"


def build(made: bytes, state: bytes) -> bytes:
    """``made.__setstate__(state)``."""
    return made + state + b"b"


FALSE, NONE = b"\x89", b"N"


def checkpoint(value: bytes) -> bytes:
    """A pickle of ``{'state_dict': {'w': value}}``."""
    return b"\x80\x02}" + text("state_dict") + b"}" + text("w") + value + b"ss."


def zip_file(pickled: bytes, **records: bytes) -> bytes:
    """A zip checkpoint with that pickle and a storage of eight bytes; ``records`` are more of them, or replace some."""
    records = {"data.pkl": pickled, "byteorder": b"little", "data/0": bytes(8), "version": b"3\n"} | records
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for record, value in records.items():
            archive.writestr(f"archive/{record}", value)
    return content.getvalue()


def legacy_file(pickled: bytes, count: int = 2, system: bytes = b"\x80\x02}.", keys: bytes | None = None) -> bytes:
    """A checkpoint in the format before PyTorch 1.6, with a storage of eight bytes, which are ``count`` numbers."""
    keys = pickle.dumps(["0"], 2) if keys is None else keys
    head = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2) + pickle.dumps(torch.serialization.PROTOCOL_VERSION, 2)
    return head + system + pickled + keys + struct.pack("<q", count) + bytes(8)


class Runs:
    """Unpickled, it gives its argument to the shell, in one way or the other."""

    def __new__(cls, command: str = "true", *, later: str = "true") -> "Runs":
        os.system(command)
        os.system(later)
        return super().__new__(cls)

    def __setstate__(self, command: str) -> None:
        os.system(command)
