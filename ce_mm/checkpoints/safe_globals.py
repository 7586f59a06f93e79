"""The names that a checkpoint's pickle may ask for, and what each of them gives: always something harmless.

A checkpoint of mmengine (either distribution) holds more than the tensors and few plain values that
``torch.load(weights_only=True)`` knows: the training curves as ``HistoryBuffer`` over NumPy arrays, NumPy scalars, the
``ConfigDict`` of a data set's meta information, the function by which a scheduler goes from one value to the next, and
whatever plain values of Python a hook has noted. Those are allowed here, under the names of NumPy 1 and of NumPy 2, and
no more. In particular no ``getattr``, by which a pickle reaches any function from any class.
"""
import datetime
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from pickle import UnpicklingError
from typing import Any

import numpy as np
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler import OneCycleParamScheduler
from torch import _weights_only_unpickler
from torch.torch_version import TorchVersion

# f8, i8, b1, ...: the number types by the names that pickles use for them.
_NUMBER_NAMES = {np.dtype(code).str[1:] for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"}
_NUMBERS = {name: np.dtype(name) for name in _NUMBER_NAMES}
_ONE_CYCLE = f"{OneCycleParamScheduler.__module__}.{OneCycleParamScheduler.__qualname__}"

_in_force: ContextVar[dict[str, Any]] = ContextVar("in_force")
_allowed_by_the_user = _weights_only_unpickler._get_user_allowed_globals


@contextmanager
def mmengine_globals() -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` read what mmengine writes, in this block of this thread alone.

    ``torch.serialization.safe_globals`` does not do: its list is one for all threads, so that one that has read takes
    the names from under another; and where two entries have one name (a ``getattr`` that someone allowed and the one
    here) it is chance which of them counts. Here the list of the user is read but never touched, and ours counts.
    """
    token = _in_force.set(_statistics() | _of_python() | _of_mmengine())
    try:
        yield
    finally:
        _in_force.reset(token)


def _allowed() -> dict[str, Any]:
    return _allowed_by_the_user() | _in_force.get({})


_weights_only_unpickler._get_user_allowed_globals = _allowed  # asked anew for each name in a pickle


@cache
def _of_mmengine() -> dict[str, Any]:
    functions = {"_reconstruct": _empty_array, "scalar": np.float64().__reduce__()[0]}
    return {
        **{f"numpy.{core}.multiarray.{name}": value for core in ("core", "_core") for name, value in functions.items()},
        "numpy.ndarray": "numpy.ndarray",  # only ever named, as an argument of _reconstruct
        "an array": np.ndarray,  # what that gives may be filled
        "numpy.dtype": _number_type,
        **{f"{kind.__module__}.{kind.__qualname__}": kind for kind in map(type, _NUMBERS.values())},
        "builtins.bytes": partial(bytes, b""),  # the content of an empty array
        "mmengine.config.config.ConfigDict": ConfigDict,
        "mmengine.logging.history_buffer.HistoryBuffer": _ReadHistoryBuffer,
        _ONE_CYCLE: _ONE_CYCLE,
        "torch.torch_version.TorchVersion": TorchVersion,  # of torch.__version__
        "builtins.getattr": _function,
    }


@cache
def _of_python() -> dict[str, Any]:
    """Values that torch leaves out; a class by itself, such as the factory of a defaultdict, is read as its name."""
    calls = {
        "builtins.frozenset": frozenset,
        "builtins.range": range,
        "builtins.slice": slice,
        "collections.defaultdict": lambda *factory: {},  # which torch would not fill
    }
    for kind in ("date", "datetime", "time", "timedelta", "timezone"):
        calls[f"datetime.{kind}"] = getattr(datetime, kind)
    for module in ("pathlib", "pathlib._local"):  # the latter in Python 3.13
        for kind in ("Posix", "Windows"):
            calls[f"{module}.{kind}Path"] = pathlib.Path  # whichever is this system's
            calls[f"{module}.Pure{kind}Path"] = getattr(pathlib, f"Pure{kind}Path")
    classes = (f"builtins.{kind.__name__}" for kind in (bool, dict, float, int, list, str, tuple))
    # A pickle can call a partial; to what a class here has made, it could also give any state.
    return {name: partial(call) for name, call in calls.items()} | {name: name for name in classes}


def _statistics() -> dict[str, str]:
    """The names of statistics that someone has registered, each as its name: they are pickled with each curve."""
    functions = HistoryBuffer._statistics_methods.values()
    return {name: name for name in (f"{function.__module__}.{function.__qualname__}" for function in functions)}


def _empty_array(*kind_shape_and_type: object) -> np.ndarray:
    """Stand for ``_reconstruct``: a pickle fills the array afterwards, and needs no room before."""
    return np.empty(0)


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

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({key: state[key] for key in ("max_length", "_log_history", "_count_history")})
        self.__class__ = HistoryBuffer


def _function(owner: object, name: str) -> Callable:
    """Stand for the ``getattr`` by which that table is pickled, and a one-cycle scheduler's function; and no more."""
    if owner is _ReadHistoryBuffer and name in ("min", "max", "current", "mean"):
        return vars(HistoryBuffer)[name]
    if owner == _ONE_CYCLE and name in ("_annealing_cos", "_annealing_linear"):
        return getattr(OneCycleParamScheduler, name)
    raise UnpicklingError("GLOBAL builtins.getattr is asked for more than the functions that mmengine saves")
