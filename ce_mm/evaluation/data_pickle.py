"""A pickle of numbers, read as data: nothing in it runs, however it is made.

A pickle can run any code when it is read in the ordinary way. Here each name that it asks for is looked up in a short
list of functions that make arrays, tensors and plain containers, and anything else ends the reading.
"""

import io
import math
import pickle
import re
from typing import Any

import numpy as np
import torch

_Unpickler = pickle._Unpickler
# A tensor may repeat the numbers of its storage; harmless up to this many.
_REPEATED = 2**20


class DataUnpickler(_Unpickler):
    """Knows numbers, text, containers, arrays and tensors; asks the interpreter for nothing else.

    It is Python's own in Python, and makes lists of tuples. The one in C fills dicts with any key, and to hash a tuple
    C code goes down into the tuples in it without a limit: a million levels end the process, thirty that double never
    end. A list is no key.
    """

    def find_class(self, module: str, name: str) -> Any:
        """What stands for that name; UnpicklingError where nothing does."""
        if (module, name) not in _ALLOWED:
            raise _refusal(f"{module}.{name}")
        return _ALLOWED[module, name]

    def _load_item(self) -> None:
        self._require_dict(self.stack[-3])
        super().load_setitem()

    def _load_items(self) -> None:
        self._require_dict(self.metastack[-1][-1])
        super().load_setitems()

    def _require_dict(self, filled: Any) -> None:
        if type(filled) is not dict:
            raise pickle.UnpicklingError("the pickle sets items of what is no dict")

    def _load_short_tuple(self, length: int) -> None:
        self.stack[-length:] = [self.stack[-length:]]

    def _load_build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if type(built) is np.ndarray:
            version, shape, dtype, is_fortran, data = state
            if not isinstance(data, bytes):
                raise pickle.UnpicklingError("an array in the pickle is not made of numbers")
            built.__setstate__((version, tuple(shape), dtype, is_fortran, data))
        elif not isinstance(built, np.dtype):
            raise pickle.UnpicklingError("the pickle tries to change a function, or what it has made")
        elif state[1] == ">":  # nothing else of it is used: the flags in it can make numpy take numbers for addresses
            raise _refusal("big-endian numbers")

    dispatch = _Unpickler.dispatch | {
        pickle.SETITEM[0]: _load_item,
        pickle.SETITEMS[0]: _load_items,
        pickle.BUILD[0]: _load_build,
        pickle.TUPLE[0]: _Unpickler.load_list,
        pickle.TUPLE1[0]: lambda self: self._load_short_tuple(1),
        pickle.TUPLE2[0]: lambda self: self._load_short_tuple(2),
        pickle.TUPLE3[0]: lambda self: self._load_short_tuple(3),
    }


def _refusal(name: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"the pickle asks for {name}, which is no data (nothing of it was run)")


def _number_type(code: str, *align_and_copy: Any) -> np.dtype:
    if not re.fullmatch("[biuf][1248]", code):
        raise _refusal(f"numpy.dtype({code!r})")
    return np.dtype(code)


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


def _rebuild_tensor(storage: Any, offset: int, size: list, stride: list, *grad_and_hooks: Any) -> torch.Tensor:
    if any(type(number) is not int for number in (offset, *size, *stride)):
        raise pickle.UnpicklingError("a tensor in the pickle has no numbers for its size")
    held = storage._size()
    reach = 1 + offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if 0 not in size and (reach > held or math.prod(size) > max(held, _REPEATED)):  # PyTorch would make room for it
        raise pickle.UnpicklingError(f"a tensor of the shape {size} claims more than the {held} numbers in its storage")
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


def _numbers(data: bytes, dtype: np.dtype) -> np.ndarray:
    if not isinstance(dtype, np.dtype):  # which numpy would make of lists in lists, however many
        raise pickle.UnpicklingError("the pickle has numbers of no type")
    return np.frombuffer(data, dtype)


_ALLOWED = {
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _text_to_bytes,
    ("__builtin__", "bytes"): lambda: b"",  # protocol 2 writes empty bytes so
    ("torch", "Size"): list,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    ("numpy", "ndarray"): None,  # only ever named, as an argument of _reconstruct
    ("numpy", "dtype"): _number_type,
}
for _core in ("numpy.core", "numpy._core"):  # before NumPy 2, and since
    _ALLOWED |= {
        (f"{_core}.multiarray", "_reconstruct"): lambda *kind: np.empty(0),
        (f"{_core}.multiarray", "scalar"): lambda dtype, data: _numbers(data, dtype)[0].item(),
        (f"{_core}.numeric", "_frombuffer"): (
            lambda data, dtype, shape, order: _numbers(data, dtype).reshape(shape, order=order)
        ),
    }
