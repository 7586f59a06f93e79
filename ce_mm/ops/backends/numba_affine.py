"""The kernel that maps: a product with z and one with a gradient, vectors added to them, and the rectifier.

Forward it is the group affine, of z alone; backward both terms of the input's gradient. A unit of work is a tile.
"""
import math
from typing import NamedTuple

from numba import njit
from torch import Tensor

from ce_mm.ops.backends.numba_products import Product, add_diagonal, store_product
from ce_mm.ops.backends.numba_threads import BEGUN, TAKEN, Kernel, bits, reader, take, threads_for
from ce_mm.ops.backends.numba_tiles import (
    BLOCK,
    POSITIONS,
    STEP,
    ahead_of,
    clear_behind,
    has_rows,
    is_zero,
    load,
    place_of,
    store,
    view,
    view_gradient,
)
from ce_mm.ops.backends.numba_vectors import OPTIONS, as_number
from ce_mm.ops.backends.numba_views import addresses, at_a_time, check_sizes, kinds, scratch_of, steps, view_of


class Term(NamedTuple):
    """What multiplies the values of a group: a matrix plus a diagonal, either of which may be missing."""

    matrix: Tensor | None = None  #: (N or 1, C/g, g, g)
    diagonal: Tensor | None = None  #: (N or 1, C)


class Affine(NamedTuple):
    """The arguments of the kernel; addresses may be 0 for what is not there."""

    n: int
    c: int
    g: int
    p: int
    row: int
    position: int
    x: int
    x_kind: int
    shift: int
    shift_step: int
    no_shift: int
    matrix: int  #: of z
    diagonal: int
    gradient_matrix: int
    gradient_diagonal: int
    bias: int
    matrix_step: int
    diagonal_step: int
    gradient_matrix_step: int
    gradient_diagonal_step: int
    bias_step: int
    gradient: int
    rectified: int
    residual: int
    gradient_kind: int
    rectified_kind: int
    residual_kind: int
    matrix_row: int  #: the steps inside of the matrices
    matrix_column: int
    floor: int
    ceiling: int
    out: int
    grain: int  #: tiles that a thread takes at a time
    scratch: int
    scratch_step: int


#: How often a thread comes for tiles, about.
TURNS = 8
_read = reader(len(Affine._fields))
_NONE = Term()


def store_affine(
    out: Tensor,
    x: Tensor,
    shift: Tensor,
    of_z: Term,
    bias: Tensor | None,
    *,
    gradient: Tensor | None = None,
    rectified: Tensor | None = None,
    of_gradient: Term = _NONE,
    transposed: bool = False,
    residual: Tensor | None = None,
    floor: float = -math.inf,
    ceiling: float = math.inf,
) -> None:
    """Run the kernel: ``out = clamp(of_gradient gradient + of_z z + bias + residual)``, where out may be x.

    All maps have the layout of x; all else is contiguous. ``transposed``: matrices are taken so, both of them.
    """
    matrix = of_gradient.matrix if of_z.matrix is None else of_z.matrix
    threads, g = threads_for(x.numel()), at_a_time(x) if matrix is None else matrix.shape[-1]
    tiles = x.shape[0] * (x.shape[1] // g) * -(-x.shape[2] * x.shape[3] // POSITIONS)
    row, column = (4, 4 * g) if transposed else (4 * g, 4)
    scratch = 4 * g * STEP + 2 * 4 * g * g
    n, c = x.shape[:2]
    sizes = (of_z.matrix, c * g), (of_z.diagonal, c), (of_gradient.matrix, c * g), (of_gradient.diagonal, c), (bias, c)
    check_sizes(n, sizes)
    coefficients, maps = (*of_z, *of_gradient, bias), (gradient, rectified, residual)
    arguments = Affine(  # type: ignore[misc]  # the fields that stars fill cannot be counted
        *view_of(x, shift, g),
        *addresses(*coefficients),
        *steps(*coefficients),
        *addresses(*maps),
        *kinds(*maps),
        matrix_row=row,
        matrix_column=column,
        floor=bits(floor),
        ceiling=bits(ceiling),
        out=out.data_ptr(),
        grain=max(tiles // (TURNS * threads), 1),
        scratch=scratch_of(threads * scratch),
        scratch_step=scratch,
    )
    _kernel(arguments, threads)


def _store_tiles(address):
    a = Affine(*_read(address))
    units = a.n * (a.c // a.g) * ((a.p + POSITIONS - 1) // POSITIONS)
    scratch = a.scratch + take(address + BEGUN, 1) * a.scratch_step
    while True:
        first = take(address + TAKEN, a.grain)
        if first >= units:
            break
        for unit in range(first, min(first + a.grain, units)):
            _store_tile(a, unit, scratch)


@njit(inline="always", **OPTIONS)
def _tile_of(a, unit):
    """Sample, first channel and first position."""
    tiles, groups = (a.p + POSITIONS - 1) // POSITIONS, a.c // a.g
    return unit // tiles // groups, unit // tiles % groups * a.g, unit % tiles * POSITIONS


@njit(inline="always", **OPTIONS)
def _store_tile(a, unit, scratch):
    sample, channel, start = _tile_of(a, unit)
    m, size = min(POSITIONS, a.p - start), a.g * STEP
    one, one_step, other, other_step, added, added_step = 0, 0, 0, 0, 0, 0
    if a.gradient:
        one, one_step = view_gradient(a, sample, channel, start, scratch, scratch + 2 * size, m)
    if a.matrix or a.diagonal:
        other, other_step, shift = scratch + size, STEP, a.shift + sample * a.shift_step + channel * 4
        if a.out != a.x and has_rows(a, a.x_kind, m) and is_zero(shift, a.g):
            other, other_step = place_of(a, a.x, a.x_kind, sample, channel, start), a.row * 4
        else:
            load(a, a.x, a.x_kind, sample, channel, start, shift, other, m)
    if a.residual:
        added, added_step = view(a, a.residual, a.residual_kind, sample, channel, start, scratch + 2 * size, m)
    if m < BLOCK:
        clear_behind(scratch, 3 * a.g, m)
    out, out_step, in_map = scratch + 3 * size, STEP, has_rows(a, a.x_kind, m)
    if in_map:
        out, out_step = place_of(a, a.out, a.x_kind, sample, channel, start), a.row * 4
    matrices = scratch + 4 * size
    gradient_matrix, gradient_diagonal = _factor(
        a, a.gradient_matrix, a.gradient_matrix_step, a.gradient_diagonal, a.gradient_diagonal_step,
        sample, channel, matrices,
    )  # fmt: skip
    matrix, diagonal = _factor(
        a, a.matrix, a.matrix_step, a.diagonal, a.diagonal_step, sample, channel, matrices + a.g * a.g * 4
    )
    next_sample, next_channel, next_start = _tile_of(a, unit + 1)
    product = Product(
        a.g,
        max(m, BLOCK),  # what lies behind m is computed, and not stored
        one,
        one_step,
        gradient_matrix,
        gradient_diagonal,
        other,
        other_step,
        matrix,
        diagonal,
        a.matrix_row,
        a.matrix_column,
        _at(a.bias, sample * a.bias_step + channel * 4),
        added,
        added_step,
        out,
        out_step,
        ahead_of(a, a.gradient, a.gradient_kind, next_sample, next_channel, next_start),
        ahead_of(a, a.x, a.x_kind, next_sample, next_channel, next_start),
        ahead_of(a, a.rectified, a.rectified_kind, next_sample, next_channel, next_start),
        a.row * 4,
    )
    store_product(product, as_number(a.floor), as_number(a.ceiling))
    if not in_map:
        store(a, out, a.out, a.x_kind, sample, channel, start, m)


@njit(inline="always", **OPTIONS)
def _factor(a, matrices, matrix_step, diagonals, diagonal_step, sample, channel, sum_of_both):
    """The matrix and the diagonal of a group, one of them 0: where there are both, their sum is made."""
    matrix = _at(matrices, sample * matrix_step + channel * a.g * 4)
    diagonal = _at(diagonals, sample * diagonal_step + channel * 4)
    if matrix and diagonal:
        add_diagonal(matrix, diagonal, a.g, sum_of_both)
        return sum_of_both, 0
    return matrix, diagonal


@njit(inline="always", **OPTIONS)
def _at(address, offset):
    """So far behind an address, or 0 where that is 0."""
    return address + offset if address else 0


_kernel = Kernel(_store_tiles)
