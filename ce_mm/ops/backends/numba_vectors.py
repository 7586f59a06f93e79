"""Vectors for Numba's functions: what LLVM is told where a loop by itself would not become the code that we mean.

:func:`emitted` makes a function that writes LLVM's instructions into one that Numba calls. Such a function sees
:class:`Value`, numbers and vectors of the machine to be, whose operators write instructions, and loops in Python are
unrolled. Addresses are whole numbers.

Multiplications and additions may be fused and sums be taken in any order; nothing is assumed of NaN and infinities.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FEATURES = llvm.get_host_cpu_features()
#: Elements of a vector: a register of AVX-512, or two of those of NEON and one of AVX2, of which there are fewer.
LANES = 16 if FEATURES.get("avx512f") else 8

INTEGER, WORD, SHORT = (ir.IntType(bits) for bits in (64, 32, 16))
HALF, FLOAT, DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()
VECTOR = ir.VectorType(FLOAT, LANES)
FLOAT_BYTES = 4

#: How Numba compiles everything here: as C would be, without the checks that raise errors of Python's.
OPTIONS: dict[str, Any] = dict(nogil=True, boundscheck=False, error_model="numpy")


class Value:
    """A value of LLVM's: a number, or a vector of numbers."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    @property
    def type(self) -> ir.Type:
        """LLVM's."""
        return self.value.type

    def _is_whole(self) -> bool:
        element = self.type.element if isinstance(self.type, ir.VectorType) else self.type
        return isinstance(element, ir.IntType)

    def like(self, other: Value | float) -> Value:
        """``other``, where it is a number of Python's as a constant of this type."""
        if isinstance(other, Value):
            return other
        constant = [other] * self.type.count if isinstance(self.type, ir.VectorType) else other
        return Value(self.builder, ir.Constant(self.type, constant))

    def _binary(self, name: str, other: Value | float) -> Value:
        value = self.like(other).value
        if self._is_whole():
            return Value(self.builder, getattr(self.builder, name)(self.value, value))
        return Value(self.builder, getattr(self.builder, "f" + name)(self.value, value, flags=("contract",)))

    def __add__(self, other: Value | float) -> Value:
        return self._binary("add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._binary("sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self._binary("mul", other)

    def __and__(self, other: Value | int) -> Value:
        return Value(self.builder, self.builder.and_(self.value, self.like(other).value))

    def __or__(self, other: Value | int) -> Value:
        return Value(self.builder, self.builder.or_(self.value, self.like(other).value))

    def __invert__(self) -> Value:
        return Value(self.builder, self.builder.not_(self.value))

    def __lshift__(self, other: int) -> Value:
        return Value(self.builder, self.builder.shl(self.value, self.like(other).value))

    def __rshift__(self, other: int) -> Value:
        return Value(self.builder, self.builder.lshr(self.value, self.like(other).value))

    def compare(self, how: str, other: Value | float) -> Value:
        """Whether ``self <= other``, ... ; no comparison with a NaN holds, but ``!=``."""
        value = self.like(other).value
        if self._is_whole():
            return Value(self.builder, self.builder.icmp_signed(how, self.value, value))
        kind = self.builder.fcmp_unordered if how == "!=" else self.builder.fcmp_ordered
        return Value(self.builder, kind(how, self.value, value))

    def where(self, one: Value, other: Value | float) -> Value:
        """Of a comparison: one where it holds, other elsewhere."""
        return Value(self.builder, self.builder.select(self.value, one.value, one.like(other).value))

    def minimum(self, other: Value | float) -> Value:
        """The smaller; self where other is a NaN."""
        other = self.like(other)
        return other.compare("<", self).where(other, self)

    def convert(self, how: str, to: ir.Type) -> Value:
        """By an instruction of LLVM's: zext, trunc, bitcast, fpext, fptrunc, sitofp, ..."""
        return Value(self.builder, getattr(self.builder, how)(self.value, to))

    def to_vector(self) -> Value:
        """A number in every lane."""
        b, kind = self.builder, ir.VectorType(self.type, LANES)
        one = b.insert_element(ir.Constant(kind, ir.Undefined), self.value, ir.Constant(WORD, 0))
        return Value(b, b.shuffle_vector(one, one, ir.Constant(ir.VectorType(WORD, LANES), [0] * LANES)))

    def shuffle(self, other: Value, lanes: list[int]) -> Value:
        """The vector of these lanes of both, numbered through."""
        mask = ir.Constant(ir.VectorType(WORD, len(lanes)), lanes)
        return Value(self.builder, self.builder.shuffle_vector(self.value, other.value, mask))

    def sum(self) -> Value:
        """Of a vector's lanes, in their type."""
        element = self.type.element
        kind, name = ir.FunctionType(element, [element, self.type]), "f64" if element == DOUBLE else "f32"
        add = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}{name}")
        zero = ir.Constant(element, -0.0)
        return Value(self.builder, self.builder.call(add, [zero, self.value], fastmath=("reassoc",)))


class Variable:
    """A value that a loop changes."""

    def __init__(self, start: Value) -> None:
        self.builder, self.place = start.builder, cgutils.alloca_once(start.builder, start.type)
        self.set(start)

    def get(self) -> Value:
        """What it is now."""
        return Value(self.builder, self.builder.load(self.place))

    def set(self, value: Value) -> None:
        """Change it."""
        self.builder.store(value.value, self.place)


class Emitter:
    """What an emitted function writes with."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def whole(self, number: int) -> Value:
        """A constant."""
        return Value(self.builder, ir.Constant(INTEGER, number))

    def zeros(self) -> Value:
        """A vector of them."""
        return Value(self.builder, ir.Constant(VECTOR, [0.0] * LANES))

    def lanes(self) -> Value:
        """Their numbers, as a vector of int32."""
        return Value(self.builder, ir.Constant(ir.VectorType(WORD, LANES), list(range(LANES))))

    def load(self, address: Value, kind: ir.Type = VECTOR) -> Value:
        """What lies there; at any address, as all here."""
        value = self.builder.load(self.builder.inttoptr(address.value, kind.as_pointer()))
        value.align = 1
        return Value(self.builder, value)

    def store(self, value: Value, address: Value) -> None:
        """Put it there."""
        self.builder.store(value.value, self.builder.inttoptr(address.value, value.type.as_pointer())).align = 1

    def prefetch(self, address: Value) -> None:
        """Have the line of memory there brought into the second level of the cache, if there is such memory."""
        b, pointer = self.builder, ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, WORD, WORD, WORD])
        fetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
        to_read, level, data = (ir.Constant(WORD, i) for i in (0, 2, 1))
        b.call(fetch, [b.inttoptr(address.value, pointer), to_read, level, data])

    @contextmanager
    def range(self, stop: Value | int, step: int = 1) -> Iterator[Value]:
        """The body of ``for i in range(0, stop, step)``."""
        b, i = self.builder, Variable(self.whole(0))
        test, body, end = (b.append_basic_block(name) for name in ("test", "body", "end"))
        b.branch(test)
        b.position_at_end(test)
        b.cbranch(i.get().compare("<", stop).value, body, end)
        b.position_at_end(body)
        yield i.get()
        i.set(i.get() + step)
        b.branch(test)
        b.position_at_end(end)

    @contextmanager
    def case(self, condition: Value) -> Iterator[None]:
        """The body of ``if condition``."""
        with self.builder.if_then(condition.value):
            yield


def pieces(k: Emitter, count: Value, body: Callable[[Value, Value | None], None]) -> None:
    """A body for every vector of so many float32: of where it lies, in bytes, and of the lanes inside, None for all."""
    last = count & (LANES - 1)
    with k.range(count - last, LANES) as i:
        body(i * FLOAT_BYTES, None)
    with k.case(last.compare("!=", 0)):
        body((count - last) * FLOAT_BYTES, k.lanes().compare("<", last.convert("trunc", WORD).to_vector()))


def emitted(takes: str, returns: str = "") -> Callable[[Callable], Any]:
    """A decorator: a function of an :class:`Emitter` and values becomes one that Numba's functions call.

    Args:
        takes: the types of its arguments, a letter each: ``i`` whole numbers and addresses, ``f`` float32, ``d``
            float64, ``t`` a NamedTuple of whole numbers, of which it sees one of values.
        returns: likewise of its results, none, one or several.
    """
    kinds = dict(i=types.intp, f=types.float32, d=types.float64)
    results = [kinds[letter] for letter in returns]
    result = results[0] if len(results) == 1 else types.UniTuple(results[0], len(results)) if results else types.void

    def decorate(function: Callable) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list) -> Any:
            values = [_seen(builder, kind, value) for kind, value in zip(signature.args, arguments, strict=True)]
            found = function(Emitter(builder), *values)
            if len(results) == 1:
                return found.value
            return context.make_tuple(builder, result, [value.value for value in found]) if results else None

        def typed(typing_context: Any, *arguments: Any) -> tuple:
            takers = zip(takes, arguments, strict=True)
            return result(*(kinds.get(letter, argument) for letter, argument in takers)), generate

        # Numba counts the arguments by the signature, where the first is the context.
        vars(typed)["__signature__"], typed.__name__ = inspect.signature(function), function.__name__
        return intrinsic(typed)

    return decorate


def _seen(builder: ir.IRBuilder, kind: Any, value: ir.Value) -> Any:
    """What an emitted function sees of an argument."""
    if isinstance(kind, (types.NamedTuple, types.NamedUniTuple)):
        return kind.instance_class(*(Value(builder, item) for item in cgutils.unpack_tuple(builder, value)))
    return Value(builder, value)


@emitted("i", "f")
def get_float(k: Emitter, address: Value) -> Value:
    """The float32 that lies there."""
    return k.load(address, FLOAT)


@emitted("if")
def put_float(k: Emitter, address: Value, value: Value) -> None:
    """Put it there as float32."""
    k.store(value, address)


@emitted("i", "d")
def get_double(k: Emitter, address: Value) -> Value:
    """The float64 that lies there."""
    return k.load(address, DOUBLE)


@emitted("id")
def put_double(k: Emitter, address: Value, value: Value) -> None:
    """Put it there as float64."""
    k.store(value, address)


@emitted("i", "f")
def as_number(k: Emitter, bits: Value) -> Value:
    """The float32 nearest to a float64 that was given by its bits."""
    return bits.convert("bitcast", DOUBLE).convert("fptrunc", FLOAT)


@emitted("")
def stay_apart(k: Emitter) -> None:
    """Have the function that calls this compiled once, and not again wherever it is called."""
    k.builder.function.attributes.add("noinline")
