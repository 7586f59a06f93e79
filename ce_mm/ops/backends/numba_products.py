"""Products of tiles, as many rows at a time as the machine has registers for.

:func:`store_product` is the affine map of a tile, and both terms of the backward's; :func:`add_products` adds up
outer products, and :func:`add_sums` what is summed along rows. Sums over a tile are taken in float32 and added to
numbers of float64, where those of many tiles lose nothing.
"""
from typing import Any, NamedTuple

from llvmlite import ir
from numba import njit

from ce_mm.ops.backends.numba_tiles import BLOCK, STEP, VECTORS, ahead_of, exchange
from ce_mm.ops.backends.numba_vectors import (
    DOUBLE,
    FLOAT,
    FLOAT_BYTES,
    LANES,
    OPTIONS,
    Emitter,
    Value,
    Variable,
    emitted,
    pieces,
)

#: Bytes that are fetched at a time.
LINE = 64
#: What AVX-512 has registers for, and what others have: rows of a product, rows and columns of an outer product, which
#: give LANES sums.
ROWS, OUTER_ROWS, OUTER_COLUMNS = (8, 4, 4) if LANES == 16 else (4, 2, 4)
#: Rows whose sums are taken at once: two for each make LANES.
SUM_ROWS = LANES // 2


class Product(NamedTuple):
    """What :func:`store_product` computes; addresses may be 0 for what is not there.

    ``out = clamp(matrix one + other_matrix other + bias + added)``, or with a diagonal, a vector, in a matrix's place.
    """

    g: int
    m: int  #: positions, at least BLOCK
    one: int
    one_step: int
    matrix: int
    diagonal: int
    other: int
    other_step: int
    other_matrix: int
    other_diagonal: int
    row: int  #: The steps inside a matrix.
    column: int
    bias: int
    added: int
    added_step: int
    out: int
    out_step: int
    ahead_one: int  #: Tiles to fetch meanwhile.
    ahead_other: int
    ahead_mask: int
    ahead_step: int


@emitted("iiii")
def add_diagonal(k: Emitter, matrix: Value, diagonal: Value, g: Value, out: Value) -> None:
    """``out = matrix + Diag(diagonal)``, of g rows."""
    size, wide = g * g, (g & (LANES - 1)).compare("==", 0)
    with k.case(wide), k.range(size, LANES) as i:
        k.store(k.load(matrix + i * FLOAT_BYTES), out + i * FLOAT_BYTES)
    with k.case(~wide), k.range(size) as i:
        k.store(k.load(matrix + i * FLOAT_BYTES, FLOAT), out + i * FLOAT_BYTES)
    with k.range(g) as i:
        place = out + i * (g + 1) * FLOAT_BYTES
        k.store(k.load(place, FLOAT) + k.load(diagonal + i * FLOAT_BYTES, FLOAT), place)


@njit(inline="always", **OPTIONS)
def store_product(a, floor, ceiling):
    """Of all rows."""
    if a.g % ROWS == 0:
        for i in range(0, a.g, ROWS):
            _store_rows_of_product(i, a, floor, ceiling)
    elif a.g % 2 == 0:
        for i in range(0, a.g, 2):
            _store_two_of_product(i, a, floor, ceiling)
    else:
        for i in range(a.g):
            _store_one_of_product(i, a, floor, ceiling)


def _product(rows: int) -> Any:
    @emitted("itff")
    def store_rows_of_product(k: Emitter, first: Value, a: Any, floor: Value, ceiling: Value) -> None:
        # a is a Product, of values.
        floor, ceiling = floor.to_vector(), ceiling.to_vector()
        number = [(first + i) * FLOAT_BYTES for i in range(rows)]
        with k.range(a.m, BLOCK) as start:
            p = start.minimum(a.m - BLOCK)  # the last block begins where it still ends inside
            place = [(p + s * LANES) * FLOAT_BYTES for s in range(VECTORS)]
            sums = {(i, s): Variable(k.zeros()) for i in range(rows) for s in range(VECTORS)}
            with k.case(a.bias.compare("!=", 0)):
                for (i, _), total in sums.items():
                    total.set(k.load(a.bias + number[i], FLOAT).to_vector())
            for tile, step, matrix, diagonal in (
                (a.one, a.one_step, a.matrix, a.diagonal),
                (a.other, a.other_step, a.other_matrix, a.other_diagonal),
            ):
                with k.case(diagonal.compare("!=", 0)):
                    for (i, s), total in sums.items():
                        factor = k.load(diagonal + number[i], FLOAT).to_vector()
                        total.set(factor * k.load(tile + (first + i) * step + place[s]) + total.get())
                with k.case(matrix.compare("!=", 0)), k.range(a.g) as j:
                    values = [k.load(tile + j * step + place[s]) for s in range(VECTORS)]
                    for i in range(rows):
                        factor = k.load(matrix + (first + i) * a.row + j * a.column, FLOAT).to_vector()
                        for s in range(VECTORS):
                            sums[i, s].set(factor * values[s] + sums[i, s].get())
            for ahead in (a.ahead_one, a.ahead_other, a.ahead_mask):
                with k.case(ahead.compare("!=", 0)):
                    for i in range(rows):
                        for line in range(0, BLOCK * FLOAT_BYTES, LINE):
                            k.prefetch(ahead + (first + i) * a.ahead_step + place[0] + line)
            with k.case(a.added.compare("!=", 0)):
                for (i, s), total in sums.items():
                    total.set(total.get() + k.load(a.added + (first + i) * a.added_step + place[s]))
            for (i, s), total in sums.items():
                value = total.get()
                value = value.compare("<=", floor).where(floor, value).minimum(ceiling)  # a NaN stays one
                k.store(value, a.out + (first + i) * a.out_step + place[s])

    return store_rows_of_product


_store_rows_of_product, _store_two_of_product, _store_one_of_product = (_product(rows) for rows in (ROWS, 2, 1))


@njit(inline="always", **OPTIONS)
def block_of(g):
    """Rows and columns of the blocks in which outer products of g rows are computed, and lie in memory."""
    if g % 4 == 0:
        return OUTER_ROWS, OUTER_COLUMNS
    return (2, 2) if g % 2 == 0 else (1, 1)


@njit(**OPTIONS)
def add_products(a, left, right, m, out, sample, channel, start):
    """``out += left rightᵀ`` of two tiles over m positions, a multiple of LANES; of left leftᵀ the blocks that meet the
    lower triangle.

    Meanwhile the tile at (sample, channel, start) of the maps in ``a`` is fetched.
    """
    rows, columns = block_of(a.g)
    row, symmetric = 0, left == right
    for i in range(0, a.g, rows):
        for j in range(0, i + rows if symmetric else a.g, columns):
            x = gradient = y = 0
            if row < a.g:
                x = ahead_of(a, a.x, a.x_kind, sample, channel + row, start)
                gradient = ahead_of(a, a.gradient, a.gradient_kind, sample, channel + row, start)
                y = ahead_of(a, a.rectified, a.rectified_kind, sample, channel + row, start)
            if symmetric and row + a.g // 2 < a.g:  # there are fewer blocks than rows
                y = ahead_of(a, a.x, a.x_kind, sample, channel + row + a.g // 2, start)
            row += 1
            block, of_left, of_right = out + (i * a.g + j * rows) * 8, left + i * STEP, right + j * STEP
            if rows * columns == LANES:
                _add_block(of_left, of_right, m, block, x, gradient, y)
            elif rows == 2:
                _add_square(of_left, of_right, m, block, x, gradient, y)
            else:
                _add_one(of_left, of_right, m, block, x, gradient, y)


def _outer_products(rows: int, columns: int) -> Any:
    @emitted("iiiiiii")
    def add_outer_products(
        k: Emitter, left: Value, right: Value, m: Value, out: Value, ahead: Value, ahead2: Value, ahead3: Value
    ) -> None:
        sums = {(i, j): Variable(k.zeros()) for i in range(rows) for j in range(columns)}
        with k.range(m, LANES) as p:
            of_left = [k.load(left + i * STEP + p * FLOAT_BYTES) for i in range(rows)]
            of_right = [k.load(right + j * STEP + p * FLOAT_BYTES) for j in range(columns)]
            for (i, j), total in sums.items():
                total.set(of_left[i] * of_right[j] + total.get())
            for address in (ahead, ahead2, ahead3):
                with k.case(address.compare("!=", 0)):
                    k.prefetch(address + p * FLOAT_BYTES)
        _add_doubles(k, lane_sums(k, [total.get() for total in sums.values()]), out)

    return add_outer_products


_add_block, _add_square, _add_one = (_outer_products(*shape) for shape in ((OUTER_ROWS, OUTER_COLUMNS), (2, 2), (1, 1)))


@njit(inline="always", **OPTIONS)
def sum_rows(g):
    """Rows whose sums are taken at once, and lie together: first those of the rows, then those of their products."""
    return SUM_ROWS if g % SUM_ROWS == 0 else 1


@njit(inline="always", **OPTIONS)
def add_sums(g, left, right, m, middles, out):
    """Add the sums along g rows of a tile over m positions, and those of left ⊙ right, both less a number for a row."""
    rows = sum_rows(g)
    for i in range(0, g, rows):
        if rows == SUM_ROWS:
            _add_sums_of_rows(left + i * STEP, right + i * STEP, m, middles + i * 4, out + i * 16)
        else:
            _add_sums_of_one(left + i * STEP, right + i * STEP, m, middles + i * 4, out + i * 16)


def _row_sums(rows: int) -> Any:
    @emitted("iiiii")
    def add_row_sums(k: Emitter, left: Value, right: Value, m: Value, middles: Value, out: Value) -> None:
        sums = [Variable(k.zeros()) for _ in range(2 * rows)]
        middle = [k.load(middles + i * FLOAT_BYTES, FLOAT).to_vector() for i in range(rows)]

        def add(place: Value, inside: Value | None) -> None:
            for i in range(rows):
                one, other = (k.load(tile + i * STEP + place) - middle[i] for tile in (left, right))
                if inside is not None:
                    one, other = inside.where(one, 0.0), inside.where(other, 0.0)
                sums[i].set(sums[i].get() + one)
                sums[rows + i].set(one * other + sums[rows + i].get())

        pieces(k, m, add)
        _add_doubles(k, lane_sums(k, [total.get() for total in sums]), out)

    return add_row_sums


_add_sums_of_rows, _add_sums_of_one = _row_sums(SUM_ROWS), _row_sums(1)


def lane_sums(k: Emitter, vectors: list[Value]) -> Value:
    """The sums of at most LANES vectors, each in a lane: of every two vectors one is made, again and again."""
    count, distance = len(vectors), 1
    vectors = vectors + [k.zeros()] * (LANES - count)
    while distance < LANES:
        pairs = (exchange(one, other, distance) for one, other in zip(vectors[::2], vectors[1::2], strict=True))
        vectors = [upper + lower for upper, lower in pairs]
        distance *= 2
    return vectors[0].shuffle(vectors[0], list(range(count)))


def _add_doubles(k: Emitter, values: Value, place: Value) -> None:
    """Add a vector of float32 to numbers of float64."""
    doubles = ir.VectorType(DOUBLE, values.type.count)
    k.store(k.load(place, doubles) + values.convert("fpext", doubles), place)
