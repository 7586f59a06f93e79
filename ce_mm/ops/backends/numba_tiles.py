"""Tiles: some positions of the channels of one group, as rows of float32 that lie in the first level of the cache.

Whatever a map's type and layout is, and what is to be subtracted or masked, is dealt with where a tile is loaded or
stored; the arithmetic in between (:mod:`ce_mm.ops.backends.numba_products`) sees rows alone. Where a map has such rows
itself, they are read and written in place. All addresses and steps are in bytes.
"""
import numpy as np
from llvmlite import ir
from numba import njit

from ce_mm.ops.backends.numba_vectors import (
    FLOAT,
    FLOAT_BYTES,
    HALF,
    LANES,
    OPTIONS,
    SHORT,
    WORD,
    Emitter,
    Value,
    as_number,
    emitted,
    get_float,
    put_float,
    stay_apart,
)

#: Positions of a tile, and the step from one of its rows to the next: no power of two, whose rows would all compete for
#: the same few places of the cache.
POSITIONS = 256
STEP = (POSITIONS + LANES) * FLOAT_BYTES
#: The types of maps: their codes.
SINGLE, BFLOAT, HALFS = 0, 1, 2
#: Positions that a product computes at a time, in so many vectors of each row: rows of so many can be used in place.
VECTORS = 2
BLOCK = VECTORS * LANES


@njit(inline="always", **OPTIONS)
def place_of(a, address, kind, sample, channel, start):
    """Where in a map a tile begins; ``a`` has its c and p, and the steps from row to row and position to position."""
    size = 4 if kind == SINGLE else 2
    return address + (sample * a.c * a.p + channel * a.row + start * a.position) * size


@njit(inline="always", **OPTIONS)
def has_rows(a, kind, m):
    """Whether m positions of a map are rows that can be used in place."""
    return kind == SINGLE and a.position == 1 and m >= BLOCK


@njit(**OPTIONS)
def clear_behind(tile, rows, m):
    """Set to 0 what lies between the last of m positions and the end of a block: who knows how slow its numbers are."""
    for i in range(rows):
        for p in range(m, BLOCK):
            put_float(tile + i * STEP + p * 4, np.float32(0))


@njit(inline="always", **OPTIONS)
def is_zero(address, g):
    """Whether g numbers of float32 all are."""
    zero = True
    for i in range(g):
        zero = zero and get_float(address + i * 4) == 0
    return zero


@njit(inline="always", **OPTIONS)
def ahead_of(a, address, kind, sample, channel, start):
    """Where a tile begins that is worth to be fetched ahead, or 0."""
    if address and kind == SINGLE and a.position == 1 and sample < a.n:
        return place_of(a, address, kind, sample, channel, start)
    return 0


@njit(**OPTIONS)
def _copy_in(kind, source, row, position, middles, tile, g, m):
    stay_apart()
    load_rows(kind, source, row, position, middles, tile, g, m)


@njit(**OPTIONS)
def _copy_out(kind, tile, target, row, position, g, m):
    stay_apart()
    store_rows(kind, tile, target, row, position, g, m)


@njit(inline="always", **OPTIONS)
def load(a, address, kind, sample, channel, start, middles, tile, m):
    """Load m positions of a group of a map, less ``middles``, g numbers of float32."""
    size = 4 if kind == SINGLE else 2
    place = place_of(a, address, kind, sample, channel, start)
    _copy_in(kind, place, a.row * size, a.position * size, middles, tile, a.g, m)


@njit(inline="always", **OPTIONS)
def store(a, tile, address, kind, sample, channel, start, m):
    """Store m positions of a tile to a map."""
    size = 4 if kind == SINGLE else 2
    place = place_of(a, address, kind, sample, channel, start)
    _copy_out(kind, tile, place, a.row * size, a.position * size, a.g, m)


@njit(inline="always", **OPTIONS)
def view(a, address, kind, sample, channel, start, tile, m):
    """Rows of float32 and the step between them: those of the map, or, where it has none, of the tile, once loaded."""
    rows, step = tile, STEP
    if has_rows(a, kind, m):
        rows, step = place_of(a, address, kind, sample, channel, start), a.row * 4
    else:
        load(a, address, kind, sample, channel, start, a.no_shift, tile, m)
    return rows, step


@njit(inline="always", **OPTIONS)
def view_gradient(a, sample, channel, start, tile, spare, m):
    """Likewise, of what of a gradient the rectifier let through."""
    rows, step = view(a, a.gradient, a.gradient_kind, sample, channel, start, tile, m)
    if a.rectified:
        y, y_step = view(a, a.rectified, a.rectified_kind, sample, channel, start, spare, m)
        mask_rows(rows, step, y, y_step, tile, as_number(a.ceiling), a.g, max(m, LANES))
        rows, step = tile, STEP
    return rows, step


def _get(k: Emitter, kind: int, address: Value, vector: bool = True) -> Value:
    """A vector, or a number, of a map as float32."""

    def of(element: ir.Type) -> ir.Type:
        return ir.VectorType(element, LANES) if vector else element

    if kind == SINGLE:
        return k.load(address, of(FLOAT))
    if kind == HALFS:
        return k.load(address, of(HALF)).convert("fpext", of(FLOAT))
    return (k.load(address, of(SHORT)).convert("zext", of(WORD)) << 16).convert("bitcast", of(FLOAT))


def _put(k: Emitter, kind: int, value: Value, address: Value) -> None:
    """Store a vector, or a number, of float32 as a map's type, rounded to the nearest."""

    def of(element: ir.Type) -> ir.Type:
        return ir.VectorType(element, LANES) if isinstance(value.type, ir.VectorType) else element

    if kind == HALFS:
        value = value.convert("fptrunc", of(HALF))
    elif kind == BFLOAT:
        bits = value.convert("bitcast", of(WORD))
        nearest = bits + ((bits >> 16) & 1) + 0x7FFF
        bits = value.compare("!=", value).where(bits | 0x400000, nearest)  # a NaN could round to an infinity
        value = (bits >> 16).convert("trunc", of(SHORT))
    k.store(value, address)


def _bytes(kind: int) -> int:
    return 4 if kind == SINGLE else 2


def exchange(one: Value, other: Value, distance: int) -> tuple[Value, Value]:
    """Both vectors, after the first gave the upper of every two runs of so many lanes for the lower of the second."""
    upper = [LANES + i - distance if i & distance else i for i in range(LANES)]
    lower = [LANES + i if i & distance else i + distance for i in range(LANES)]
    return one.shuffle(other, upper), one.shuffle(other, lower)


def _transposed(rows: list[Value]) -> list[Value]:
    """LANES rows as columns."""
    rows, distance = list(rows), 1
    while distance < LANES:
        for i in range(LANES):
            if not i & distance:
                rows[i], rows[i + distance] = exchange(rows[i], rows[i + distance], distance)
        distance *= 2
    return rows


@emitted("iiiiiiii")
def load_rows(
    k: Emitter, kind: Value, source: Value, row: Value, position: Value, middles: Value, tile: Value, g: Value, m: Value
) -> None:
    """Copy m positions of g rows of a map to a tile, less a number for each row.

    Args:
        k: the emitter.
        kind: of the map.
        source: the map's first value, ``row`` and ``position`` the steps to the next.
        middles: where the g numbers lie, as float32.
        tile: where to.
        g, m: how much.
    """
    for code in (SINGLE, BFLOAT, HALFS):
        size = _bytes(code)
        with k.case(kind.compare("==", code)):
            in_rows, in_squares, one_by_one = _ways(position.compare("==", size), g, m)
            with k.case(in_rows), k.range(g) as i:
                middle = k.load(middles + i * FLOAT_BYTES, FLOAT).to_vector()
                with k.range(m, LANES) as start:
                    p = start.minimum(m - LANES)  # the last vector begins where it still ends inside
                    values = _get(k, code, source + i * row + p * size)
                    k.store(values - middle, tile + i * STEP + p * FLOAT_BYTES)
            with k.case(in_squares), k.range(m, LANES) as start, k.range(g, LANES) as i:
                p = start.minimum(m - LANES)
                columns = [_get(k, code, source + (p + lane) * position + i * size) for lane in range(LANES)]
                middle = k.load(middles + i * FLOAT_BYTES)
                for lane, values in enumerate(_transposed([column - middle for column in columns])):
                    k.store(values, tile + (i + lane) * STEP + p * FLOAT_BYTES)
            with k.case(one_by_one), k.range(m) as p, k.range(g) as i:
                value = _get(k, code, source + i * row + p * position, vector=False)
                k.store(value - k.load(middles + i * FLOAT_BYTES, FLOAT), tile + i * STEP + p * FLOAT_BYTES)


@emitted("iiiiiii")
def store_rows(
    k: Emitter, kind: Value, tile: Value, target: Value, row: Value, position: Value, g: Value, m: Value
) -> None:
    """Copy a tile to a map; arguments as :func:`load_rows`'."""
    for code in (SINGLE, BFLOAT, HALFS):
        size = _bytes(code)
        with k.case(kind.compare("==", code)):
            in_rows, in_squares, one_by_one = _ways(position.compare("==", size), g, m)
            with k.case(in_rows), k.range(g) as i, k.range(m, LANES) as start:
                p = start.minimum(m - LANES)
                _put(k, code, k.load(tile + i * STEP + p * FLOAT_BYTES), target + i * row + p * size)
            with k.case(in_squares), k.range(m, LANES) as start, k.range(g, LANES) as i:
                p = start.minimum(m - LANES)
                rows = [k.load(tile + (i + lane) * STEP + p * FLOAT_BYTES) for lane in range(LANES)]
                for lane, values in enumerate(_transposed(rows)):
                    _put(k, code, values, target + (p + lane) * position + i * size)
            with k.case(one_by_one), k.range(m) as p, k.range(g) as i:
                value = k.load(tile + i * STEP + p * FLOAT_BYTES, FLOAT)
                _put(k, code, value, target + i * row + p * position)


def _ways(contiguous: Value, g: Value, m: Value) -> tuple[Value, Value, Value]:
    """Which of three ways a tile is copied: by vectors along the rows, by squares of them, or value by value."""
    wide, many = m.compare(">=", LANES), (g & (LANES - 1)).compare("==", 0)
    in_rows, in_squares = contiguous & wide, ~contiguous & wide & many
    return in_rows, in_squares, ~(in_rows | in_squares)


@emitted("iiiiifii")
def mask_rows(
    k: Emitter,
    source: Value,
    source_step: Value,
    y: Value,
    y_step: Value,
    tile: Value,
    ceiling: Value,
    g: Value,
    m: Value,
) -> None:
    """Copy rows of float32 to a tile, but 0 where y is not above 0, or not below the ceiling; a NaN of y lets through.

    Args:
        k: the emitter.
        source, source_step: the rows, which may be the tile's own, and how far they lie apart.
        y, y_step: likewise.
        tile, ceiling: as said.
        g, m: how much, at least LANES positions.
    """
    ceiling = ceiling.to_vector()
    with k.range(g) as i, k.range(m, LANES) as start:
        p = start.minimum(m - LANES) * FLOAT_BYTES
        of_y = k.load(y + i * y_step + p)
        passes = ~(of_y.compare("<=", 0.0) | of_y.compare(">=", ceiling))
        k.store(passes.where(k.load(source + i * source_step + p), 0.0), tile + i * STEP + p)
