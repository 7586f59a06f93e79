"""A checkpoint is data: read what mmengine writes, refuse everything else, run nothing that a file asks for.

``torch.load(weights_only=True)`` with the names of :mod:`ce_mm.checkpoints.safe_globals`. What a file claims to hold is
held against its size first (:mod:`ce_mm.checkpoints.claims`).
"""
import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import torch

from ce_mm.checkpoints.claims import ClaimError, check_claims
from ce_mm.checkpoints.safe_globals import mmengine_globals

_GET_ANEW = "expected a file written by torch.save (or safetensors, by its name); copy or download it again."


class CheckpointError(ValueError):
    """A file that is no readable checkpoint; the text names it, what was expected and how to mend it."""


def read_checkpoint(path: str | os.PathLike, map_location: object = "cpu") -> dict:
    """Read a checkpoint as data.

    Args:
        path: a file written by ``torch.save`` (zip or older format), by mmengine, or, named so, by safetensors.
        map_location: where tensors go, as for ``torch.load``; None puts them where they were saved from.

    Raises:
        CheckpointError: the file is missing, a folder, not for reading, empty, damaged, claims more than it can hold,
            holds more than data, or is not a dict.
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
    return checkpoint


def load_safely(load: Callable[..., object], source: object, **options: object) -> object:
    """Call ``load(source, weights_only=True, **options)`` with the names allowed that mmengine writes.

    Args:
        load: ``torch.load``, or a function that ends there with the same ``weights_only``.
        source: what to load: a Path, a URL, or an open file. It names the checkpoint in errors.

    Raises:
        CheckpointError: what was read is damaged, claims more than it can hold, or holds more than data.
    """
    name = source if isinstance(source, str | os.PathLike) else "the checkpoint received"
    try:
        if isinstance(source, Path):
            if source.suffix != ".safetensors":  # which torch.load leaves to that library, and its format is only data
                with source.open("rb") as file:
                    check_claims(file)
        elif not isinstance(source, str):
            check_claims(source)
        with mmengine_globals():
            return load(source, weights_only=True, **options)
    except Exception as error:  # damaged bytes raise anything: KeyError, EOFError, struct.error, ...
        if _lies_elsewhere(error):
            raise
        raise CheckpointError(f"{name}: {_explain(error)}") from None  # torch's own text advises weights_only=False


def _lies_elsewhere(error: Exception) -> bool:
    """Whether memory, disk, network or an absent device failed, and not the checkpoint."""
    if isinstance(error, OSError):
        return error.errno != errno.EINVAL  # raised where torch looks for the end of a zip file that is cut short
    saved_on_an_absent_device = isinstance(error, RuntimeError) and "map_location" in str(error)
    return saved_on_an_absent_device or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _explain(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ClaimError):
        return text
    refused = re.search(r"GLOBAL (\S+)", text)
    if refused and isinstance(error, UnpicklingError):
        return (
            f"it asks for {refused[1]}, which is more than data; it was not read, and nothing in it ran. Expected "
            "tensors, numbers, text and NumPy arrays of numbers: get the weights alone (state_dict) from its author. "
            "Only if you wrote it yourself, allow the name with torch.serialization.add_safe_globals."
        )
    reason = re.split(r"In PyTorch 2\.6|\n", text.split("WeightsUnpickler error:")[-1].strip())[0].strip()
    return f"it is damaged, cut short or no checkpoint at all ({reason or type(error).__name__}); {_GET_ANEW}"
