"""A pickle of numbers, read as data: nothing in it runs, however it is made.

A pickle can run any code when it is read in the ordinary way. Here each name that it asks for is looked up in a short
list of stand-ins for arrays, tensors and plain containers, and anything else ends the reading.
"""

import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class DataUnpickler(pickle._Unpickler):
    """Knows numbers, text, containers, arrays and tensors; asks the interpreter for nothing else.

    It is Python's own in Python. The one in C fills dicts and sets with any key, and to hash a tuple C code goes down
    into the tuples in it without a limit: a million levels end the process, thirty that double never end.
    """

    def find_class(self, module: str, name: str) -> Any:
        """What stands for that name; UnpicklingError where nothing does."""
        if (module, name) not in _STAND_INS:
            raise _refusal(f"{module}.{name}")
        return _STAND_INS[module, name]

    def _load_setitem(self) -> None:
        _check_items(self.stack[-3], self.stack[-2:-1])
        super().load_setitem()

    def _load_setitems(self) -> None:
        _check_items(self.metastack[-1][-1], self.stack[::2])
        super().load_setitems()

    def _load_build(self) -> None:
        if not isinstance(self.stack[-2], _Number | _Array):
            raise pickle.UnpicklingError("the pickle tries to change a function, or what it has made")
        super().load_build()

    def _load_other(self) -> None:
        raise pickle.UnpicklingError("the pickle makes sets, or dicts in a way that no results need")

    dispatch = pickle._Unpickler.dispatch | {
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.BUILD[0]: _load_build,
        **dict.fromkeys((code[0] for code in (pickle.DICT, pickle.EMPTY_SET, pickle.FROZENSET)), _load_other),
    }


def _check_items(filled: Any, keys: list[Any]) -> None:
    if type(filled) is not dict or any(isinstance(key, tuple) for key in keys):
        raise pickle.UnpicklingError("the pickle has a tuple for a key, or sets items of what is no dict")


def _refusal(name: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"the pickle asks for {name}, which is no data (nothing of it was run)")


class _StandIn:
    """What a pickle gets where it names a function or a class: it can call it and do nothing else with it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _Number:
    """Stands for numpy.dtype. Of the state in the pickle only the byte order is used: other parts can break numpy."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, *align_and_copy: Any) -> None:
        if not re.fullmatch("[biuf][1248]", code):
            raise _refusal(f"numpy.dtype({code!r})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that is filled with numbers only."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, number, is_fortran, data = state
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array in the pickle is not made of numbers")
        super().__setstate__((version, shape, number.dtype, is_fortran, data))


def _text_to_bytes(text: str, encoding: str) -> bytes:
    """What ``_codecs.encode`` is there for in a pickle of protocol 2, which has no bytes."""
    if encoding != "latin1":
        raise _refusal(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _load_storage(data: bytes) -> torch.storage.TypedStorage:
    """A tensor's numbers: a pickle of PyTorch's within the pickle, which PyTorch itself would read without any care."""
    file = io.BytesIO(data)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's message is a page that recommends to switch the protection off.
        name = re.search(r"GLOBAL (\S+)", str(error))
        raise _refusal(f"{name.group(1)} within a tensor" if name else "more than numbers in a tensor") from error


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *grad_and_hooks: Any) -> torch.Tensor:
    if any(type(number) is not int for number in (offset, *size, *stride)):
        raise pickle.UnpicklingError("a tensor in the pickle has no numbers for its size")
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, {})


_STAND_INS = {
    ("collections", "OrderedDict"): _StandIn(lambda: {}),
    ("_codecs", "encode"): _StandIn(_text_to_bytes),
    ("__builtin__", "bytes"): _StandIn(lambda: b""),  # protocol 2 writes empty bytes so
    ("torch", "Size"): _StandIn(tuple),
    ("torch._utils", "_rebuild_tensor_v2"): _StandIn(_rebuild_tensor),
    ("torch.storage", "_load_from_bytes"): _StandIn(_load_storage),
    ("numpy", "ndarray"): "numpy.ndarray",  # only ever named, as an argument of _reconstruct
    ("numpy", "dtype"): _StandIn(_Number),
}
for _core in ("numpy.core", "numpy._core"):  # before NumPy 2, and since
    _STAND_INS |= {
        (f"{_core}.multiarray", "_reconstruct"): _StandIn(lambda *args: _Array(0)),
        (f"{_core}.multiarray", "scalar"): _StandIn(lambda number, data: np.frombuffer(data, number.dtype)[0].item()),
        (f"{_core}.numeric", "_frombuffer"): _StandIn(
            lambda data, number, shape, order: np.frombuffer(data, number.dtype).reshape(shape, order=order)
        ),
    }
