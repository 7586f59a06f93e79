"""Weights as files for others: one content for the same weights, the digits of its hash in its name, its config beside.

A file holds the weights under ``state_dict`` and what belongs to them under ``meta``; no optimizer, no logs, no date.
Its suffix says the format: PyTorch's (.pth) or safetensors', where ``meta`` is the text of a JSON object.
"""
import hashlib
import io
import json
import re
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ce_mm.checkpoints.reading import META
from ce_mm.files import placing, remove_abandoned

SUFFIXES = (".pth", ".safetensors")


def serialise(weights: dict[str, Tensor], meta: dict, suffix: str) -> bytes:
    """The content of a file; the same for the same arguments.

    Args:
        weights: by name, each written by itself (no shared storage, no strides).
        meta: plain values, which JSON knows.
        suffix: one of ``SUFFIXES``.
    """
    weights = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
    if suffix == ".safetensors":  # which writes several entries in an order of chance, and the hash would change
        return save(weights, {META: json.dumps(meta)})
    content = io.BytesIO()  # a file's name would be written into it
    torch.save(dict(meta=meta, state_dict=weights) if meta else dict(state_dict=weights), content)
    return content.getvalue()


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
        for path, content in files.items():
            remove_abandoned(path)
            if not is_there(path, content):
                with placing(path) as unfinished:
                    unfinished.write_bytes(content)
                placed.append(path)
    except BaseException:
        for path in placed:
            path.unlink(missing_ok=True)
        with suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise
