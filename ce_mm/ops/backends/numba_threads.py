"""PyTorch's threads, for functions that Numba compiled: its number of them, and its pool.

A second pool would fight the first one's threads, which spin for a while after each of PyTorch's own operations. So a
kernel is started by the OpenMP library that PyTorch itself runs on. Where there is none that can be asked, and in a
process that was forked off, which has no more of the pool than its memory, it runs on one thread.

Work is a number of units that the threads take as they get to them. What a unit writes does not depend on who does
it, so that results are the same bits, however many threads there are, asked for or started, and whichever is faster.
"""
import ctypes
import os
import struct
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ce_mm.ops.backends.numba_cache import compiled
from ce_mm.ops.backends.numba_vectors import INTEGER, OPTIONS, Emitter, Value, Variable, emitted

#: Elements of a map below which a further thread would cost more than it does.
SHARE = 2**14

#: The first words of a kernel's arguments: how many threads have begun, and how many units are taken.
BEGUN, TAKEN, FIRST_ARGUMENT = 0, 8, 16


class Kernel:
    """A function of the address of its arguments, which every thread calls, compiled or found in the cache.

    Its arguments are a NamedTuple of whole numbers, addresses, and what :func:`bits` makes of others.
    """

    def __init__(self, function: Callable[[int], None]) -> None:
        self.address = compiled(function, types.void(types.intp), **OPTIONS).address
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address)

    def __call__(self, arguments: Sequence[int], threads: int = 1) -> array:
        """Run it to its end; returns its arguments, of which it may have changed some."""
        words = array("q", (0, 0, *arguments))  # quicker to make than an array of ctypes'
        place, _ = words.buffer_info()
        if threads == 1:
            self._call(place)
        else:
            assert _pool is not None  # or threads_for had said 1
            _pool(self.address, place, threads, 0)
        return words[2:]


def threads_for(elements: int) -> int:
    """How many threads work on a map of so many elements."""
    return max(min(torch.get_num_threads(), elements // SHARE), 1) if _pool is not None else 1


def bits(number: float) -> int:
    """A float64 as an argument."""
    return struct.unpack("q", struct.pack("d", number))[0]


def _find_pool() -> Callable | None:
    """GOMP_parallel of the OpenMP library that PyTorch was linked with: GNU's, or one that can stand in for it."""
    try:
        pool = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return None
    pool.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    pool.restype = None
    return pool


def _leave_pool() -> None:
    global _pool
    _pool = None


_pool = _find_pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_pool)


def reader(count: int) -> Any:
    """A function for kernels: all their arguments, as so many whole numbers."""

    @emitted("i", "i" * count)
    def read(k: Emitter, address: Value) -> tuple[Value, ...]:
        return tuple(k.load(address + (FIRST_ARGUMENT + 8 * i), INTEGER) for i in range(count))

    return read


@emitted("ii", "i")
def take(k: Emitter, counter: Value, amount: Value) -> Value:
    """Add an amount to a counter that all threads see; returns what it was."""
    place = k.builder.inttoptr(counter.value, INTEGER.as_pointer())
    return Value(k.builder, k.builder.atomic_rmw("add", place, amount.value, "monotonic"))


@emitted("i")
def finish(k: Emitter, counter: Value) -> None:
    """Count a unit that is done, and let who waits see what it has written."""
    place = k.builder.inttoptr(counter.value, INTEGER.as_pointer())
    k.builder.atomic_rmw("add", place, ir.Constant(INTEGER, 1), "release")


@emitted("ii")
def wait(k: Emitter, counter: Value, count: Value) -> None:
    """Until so many units are done, all of which somebody must have taken who waits for none of the later ones."""
    b, place = k.builder, k.builder.inttoptr(counter.value, INTEGER.as_pointer())
    test, again, end = (b.append_basic_block(name) for name in ("test", "again", "end"))
    tries = Variable(k.whole(0))
    b.branch(test)
    b.position_at_end(test)
    done = Value(b, b.load_atomic(place, "acquire", 8, typ=INTEGER))
    b.cbranch(done.compare("<", count).value, again, end)
    b.position_at_end(again)
    tries.set(tries.get() + 1)
    if os.name == "posix":  # elsewhere there is no pool that we know, and so nobody to wait for
        with k.case((tries.get() & 1023).compare("==", 0)):
            b.call(cgutils.get_or_insert_function(b.module, ir.FunctionType(ir.IntType(32), []), "sched_yield"), [])
    b.branch(test)
    b.position_at_end(end)
