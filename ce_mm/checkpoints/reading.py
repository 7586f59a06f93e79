"""A checkpoint is data: read what mmengine writes, refuse everything else, run nothing that a file asks for.

torch.load(weights_only=True) knows tensors and plain Python values. A checkpoint of mmengine (either distribution)
holds besides: the training curves as ``HistoryBuffer`` over NumPy arrays, NumPy scalars, and the ``ConfigDict`` of a
data set's meta information. Those few are allowed here, under the names of NumPy 1 and of NumPy 2, and no more. In
particular no ``getattr``, by which a pickle reaches any function from any class. What a file claims to hold is held
against its size first (:mod:`ce_mm.checkpoints.claims`).
"""
import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from ce_mm.checkpoints.claims import ClaimError, check_claims

_GET_ANEW = "expected a file written by torch.save (or safetensors, by its name); copy or download it again."
# f8, i8, b1, ...: the number types by the names that pickles use for them.
_NUMBER_NAMES = {np.dtype(code).str[1:] for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"}
_NUMBERS = {name: np.dtype(name) for name in _NUMBER_NAMES}


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
        return load_safely(torch.load, path, map_location=map_location)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({reason}); check its rights and disk") from error


def load_safely(load: Callable[..., object], source: object, **options: object) -> dict:
    """Call ``load(source, weights_only=True, **options)`` with the allow-list in force.

    Args:
        load: ``torch.load``, or a function that ends there with the same ``weights_only``.
        source: what to load: a Path, a URL, or an open file. It names the checkpoint in errors.

    Raises:
        CheckpointError: what was read is damaged, claims more than it can hold, holds more than data, or is not a dict.
    """
    name = source if isinstance(source, str | os.PathLike) else "the checkpoint received"
    try:
        if isinstance(source, Path):
            if source.suffix != ".safetensors":  # which torch.load leaves to that library, and its format is only data
                with source.open("rb") as file:
                    check_claims(file)
        elif not isinstance(source, str):
            check_claims(source)
        with _allow_list():
            checkpoint = load(source, weights_only=True, **options)
    except Exception as error:  # damaged bytes raise anything: KeyError, EOFError, struct.error, ...
        if _lies_elsewhere(error):
            raise
        raise CheckpointError(f"{name}: {_explain(error)}") from None  # torch's own text advises weights_only=False
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"{name}: expected a dict of weights, with 'state_dict' or directly by name, but it holds "
            f"{type(checkpoint).__name__}; save model.state_dict() instead."
        )
    return checkpoint


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


@contextmanager
def _allow_list() -> Iterator[None]:
    """Allow what mmengine writes, and what the user has allowed under other names; afterwards all is as before.

    ``torch.serialization.safe_globals`` does not do: it would forget on exit what the user had allowed too, and where
    two entries have one name (mmengine's own ``getattr`` and the one here) it is chance which of them counts.
    """
    before = torch.serialization.get_safe_globals()
    ours = _mmengine_globals()
    names = {_name(entry) for entry in ours}
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([entry for entry in before if _name(entry) not in names] + ours)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _name(entry: Callable | tuple[Callable, str]) -> str:
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"


@cache
def _mmengine_globals() -> list:
    functions = {"_reconstruct": np.zeros(1).__reduce__()[0], "scalar": np.float64().__reduce__()[0]}
    return [
        *((function, f"numpy.core.multiarray.{name}") for name, function in functions.items()),
        *((function, f"numpy._core.multiarray.{name}") for name, function in functions.items()),
        np.ndarray,
        (_number_type, "numpy.dtype"),
        *{type(dtype) for dtype in _NUMBERS.values()},
        bytes,  # the content of an empty array
        ConfigDict,
        (_ReadHistoryBuffer, "mmengine.logging.history_buffer.HistoryBuffer"),
        (_statistic, "builtins.getattr"),
    ]


def _number_type(code: str, *align_and_copy: bool) -> np.dtype:
    """Stand for ``np.dtype``: NumPy's own number types, which ignore the state that a pickle brings for them.

    The copy that the pickle asks for would take that state, flags included by which NumPy takes numbers for addresses.
    (The state is also where a big-endian machine says that it is one; its arrays are not for reading elsewhere.)
    """
    if code not in _NUMBERS:
        raise UnpicklingError(f"GLOBAL numpy.dtype({code!r}) is not a type of numbers")
    return _NUMBERS[code]


class _ReadHistoryBuffer(HistoryBuffer):
    """Becomes a plain ``HistoryBuffer`` of the curve alone, without the functions in its pickle.

    A HistoryBuffer is pickled together with its class's table of statistics, and unpickling would write that table back
    into the class: a file could replace the mean of all HistoryBuffers of the process.
    """

    def __setstate__(self, state: dict) -> None:
        super().__setstate__({key: state[key] for key in ("max_length", "_log_history", "_count_history")})
        self.__class__ = HistoryBuffer


def _statistic(owner: object, name: str) -> Callable:
    """Stand for the ``getattr`` by which that table of statistics is pickled, and for nothing else."""
    if owner is _ReadHistoryBuffer and name in ("min", "max", "current", "mean"):
        return vars(HistoryBuffer)[name]
    raise UnpicklingError("GLOBAL builtins.getattr is asked for more than the statistics of a HistoryBuffer")
