"""A checkpoint is data: read what mmengine writes, refuse everything else, run nothing that a file asks for.

``torch.load(weights_only=True)`` with the names of :mod:`ce_mm.checkpoints.safe_globals`. PyTorch does not look at the
checksums that it writes beside each tensor, and would read a flipped bit of a weight as another weight: that is done
here. (The format before PyTorch 1.6 and safetensors have none.)
"""
import errno
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from ce_mm.checkpoints.safe_globals import mmengine_globals

#: Where a safetensors file written here has what belongs to its weights, as the text of a JSON object.
META = "ce_mm"
_GET_ANEW = "expected a file written by torch.save (or safetensors, by its name); copy or download it again."
#: How many bytes are read at a time for a checksum.
_PIECE = 2**20


class CheckpointError(ValueError):
    """A file that is no readable checkpoint; the text names it, what was expected and how to mend it."""


def read_checkpoint(path: str | os.PathLike, map_location: object = "cpu") -> dict:
    """Read a checkpoint as data.

    Args:
        path: a file written by ``torch.save`` (zip or older format), by mmengine, or, named so, by safetensors.
        map_location: where tensors go, as for ``torch.load``; None puts them where they were saved from.

    Returns:
        What was saved; of a safetensors file ``state_dict`` and ``meta``.

    Raises:
        CheckpointError: the file is missing, a folder, not for reading, empty, damaged, holds more than data, or is not
            a dict.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise CheckpointError(f"{path}: there is no such checkpoint; check the path.")
        if path.is_dir():
            raise CheckpointError(f"{path}: expected a checkpoint file, but this is a folder; name a file in it.")
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path}: the checkpoint is empty (0 bytes); {_GET_ANEW}")
        checkpoint = load_safely(torch.load, path, map_location=map_location)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({reason}); check its rights and disk") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"{path}: expected a dict of weights, with 'state_dict' or directly by name, but it holds "
            f"{type(checkpoint).__name__}; save model.state_dict() instead."
        )
    return dict(state_dict=checkpoint, meta=_meta(path)) if path.suffix == ".safetensors" else checkpoint


def weights_of(checkpoint: dict) -> dict[str, Tensor]:
    """The weights of a checkpoint, under ``state_dict`` or directly, by their names without ``module.`` in front.

    Raises:
        CheckpointError: there are none, one is no dense tensor with values, or two have one name.
    """
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"expected weights by name, but there is {type(state).__name__} without any")
    weights = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"expected a tensor for every name, but {name!r:.99} is {type(value).__name__}")
        if value.layout is not torch.strided or value.is_quantized or value.is_nested or value.is_meta:
            raise CheckpointError(f"{name} is no plain tensor but sparse, quantized, nested or without values")
        short = name.removeprefix("module.")
        if short in weights:
            raise CheckpointError(f"{short} is there twice, with and without 'module.' in front")
        weights[short] = value.detach()
    return weights


def load_safely(load: Callable[..., object], source: object, **options: object) -> object:
    """Call ``load(source, weights_only=True, **options)`` with the names allowed that mmengine writes.

    Args:
        load: ``torch.load``, or a function that ends there with the same ``weights_only``.
        source: what to load: a Path, a URL, or an open file. It names the checkpoint in errors.

    Raises:
        CheckpointError: what was read is damaged or holds more than data.
    """
    name = source if isinstance(source, str | os.PathLike) else "the checkpoint received"
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                _check_sums(file)
        elif not isinstance(source, str):
            _check_sums(source)
        with mmengine_globals():
            return load(source, weights_only=True, **options)
    except Exception as error:  # damaged bytes raise anything: KeyError, EOFError, struct.error, ...
        if _lies_elsewhere(error):
            raise
        raise CheckpointError(f"{name}: {_explain(error)}") from None  # torch's own text advises weights_only=False


def _check_sums(file: BinaryIO) -> None:
    """That the records of a zip archive have the checksums beside them; BadZipFile names the first that has not."""
    start = file.tell()
    if file.read(4) == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            for record in archive.infolist():
                if record.CRC:  # 0 where torch.serialization.set_crc32_options has switched checksums off
                    with archive.open(record) as content:
                        while content.read(_PIECE):
                            pass
    file.seek(start)


def _meta(path: Path) -> object:
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get(META, "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata is damaged ({error}); copy or download it again.") from None


def _lies_elsewhere(error: Exception) -> bool:
    """Whether memory, disk, network or an absent device failed, and not the checkpoint."""
    if isinstance(error, OSError):
        return error.errno != errno.EINVAL  # raised where torch looks for the end of a zip file that is cut short
    saved_on_an_absent_device = isinstance(error, RuntimeError) and "map_location" in str(error)
    return saved_on_an_absent_device or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _explain(error: Exception) -> str:
    text = str(error)
    refused = re.search(r"GLOBAL (\S+)", text)
    if refused and isinstance(error, UnpicklingError):
        return (
            f"it asks for {refused[1]}, which is more than data; it was not read, and nothing in it ran. Expected "
            "tensors, numbers, text and NumPy arrays of numbers: get the weights alone (state_dict) from its author. "
            "Only if you wrote it yourself, allow the name with torch.serialization.add_safe_globals."
        )
    if "TorchScript archives" in text or "legacy .tar format" in text:
        return f"it is a TorchScript program, a tar archive or no checkpoint at all; {_GET_ANEW}"
    reason = re.split(r"In PyTorch 2\.6|\n", text.split("WeightsUnpickler error:")[-1].strip())[0].strip()
    return f"it is damaged, cut short or no checkpoint at all ({reason or type(error).__name__}); {_GET_ANEW}"
