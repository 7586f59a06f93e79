"""Weights as files for others: one content for the same weights, the digits of its hash in its name, its config beside.

A file holds the weights under ``state_dict`` and what belongs to them under ``meta``; no optimizer, no logs, no date.
Its suffix says the format: PyTorch's (.pth) or safetensors'. There, ``meta`` is the text of a JSON object, as the
format knows text alone, and the order of the names is lost.
"""
import base64
import hashlib
import io
import json
import os
import re
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint
from ce_mm.files import placing, remove_abandoned

SUFFIXES = (".pth", ".safetensors")
_META = "ce_mm"  # one entry alone: safetensors writes several in an order of chance, and the hash would change


def serialise(weights: dict[str, Tensor], meta: dict, suffix: str) -> bytes:
    """The content of a file; the same for the same arguments.

    Args:
        weights: by name, each written by itself (no shared storage, no strides).
        meta: plain values; under ``authors`` there may be tensors.
        suffix: one of ``SUFFIXES``.
    """
    weights = {name: _alone(value) for name, value in weights.items()}
    if suffix == ".safetensors":
        return save(weights, {_META: json.dumps(_as_text(meta))})
    if "authors" in meta:
        originals = {name: _alone(value) for name, value in meta["authors"]["originals"].items()}
        meta = meta | dict(authors=meta["authors"] | dict(originals=originals))
    content = io.BytesIO()  # a file's name would be written into it
    torch.save(dict(meta=meta, state_dict=weights) if meta else dict(state_dict=weights), content)
    return content.getvalue()


def read(path: Path) -> dict:
    """Read a checkpoint of either format as data: a dict with ``state_dict`` and ``meta``, or the weights themselves.

    Raises:
        CheckpointError: it is missing, a folder, damaged, or holds more than data.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return read_checkpoint(path)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.offset_keys()}
            texts = file.metadata() or {}
        return dict(state_dict=weights, meta=_from_text(texts[_META]) if _META in texts else {})
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: it is damaged, cut short or no safetensors file at all ({error}); copy or download it again."
        ) from None


def sha256(content: bytes) -> str:
    """The hash, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def published(path: Path, digest: str) -> Path:
    """``x.pth`` as ``x-1a2b3c4d.pth``: the name by which OpenMMLab and torch.hub check a download.

    torch.hub looks for the digits before the first dot, so that the name has no other: ``0.5x`` becomes ``0p5x``.
    """
    stem = re.sub(r"(?<=\d)\.(?=\d)", "p", path.stem).replace(".", "-")
    return path.with_name(f"{stem}-{digest[:8]}{path.suffix}")


def is_misnamed(path: Path) -> bool:
    """Whether a name has eight digits where :func:`published` puts them, but not those of the file's hash.

    Digits without a letter are taken for a date.
    """
    found = re.search(r"-(?=\d*[a-f])([0-9a-f]{8})$", path.stem)
    return found is not None and not sha256(path.read_bytes()).startswith(found[1])


def is_there(path: Path, content: bytes) -> bool:
    """Whether a file is there by now with this very content: a conversion that was killed has left it."""
    return path.is_file() and path.read_bytes() == content


def write_all(files: dict[Path, bytes]) -> None:
    """Write those files that are not there by now: all of them or none; their one folder is made.

    Raises:
        OSError: the disk is full, the folder is not for writing, another one is there, ...; nothing is left there.
    """
    placed = []
    folder = next(iter(files)).parent
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in files:
            remove_abandoned(path)
        _write([pair for pair in files.items() if not is_there(*pair)], placed)
    except BaseException:
        for path in placed:
            path.unlink(missing_ok=True)
        with suppress(OSError):
            for parent in made:
                os.rmdir(parent)
        raise


def _write(files: list[tuple[Path, bytes]], placed: list[Path]) -> None:
    """Each is moved into place only when all are written: the last first."""
    if files:
        (path, content), *rest = files
        with placing(path) as unfinished:
            unfinished.write_bytes(content)
            _write(rest, placed)
        placed.append(path)


def _alone(value: Tensor) -> Tensor:
    return value.detach().clone(memory_format=torch.contiguous_format)


def _as_text(meta: dict) -> dict:
    kept = meta.get("authors")
    if kept is None:
        return meta
    originals = base64.b64encode(save({name: _alone(value) for name, value in kept["originals"].items()}))
    return meta | dict(authors=dict(originals=originals.decode(), order=kept["order"]))


def _from_text(text: str) -> dict:
    """What :func:`_as_text` was given, before it became JSON."""
    meta = json.loads(text)
    if "authors" in meta:
        meta["authors"]["originals"] = load(base64.b64decode(meta["authors"]["originals"]))
    return meta
