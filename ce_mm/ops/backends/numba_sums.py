"""The kernel that sums: moments of a map, or a gradient's sums and its products with the map.

A unit of work is a group of channels in some of the samples. What is summed for all samples alike goes on in the same
tile from one sample to the next, so that small maps fill it too.
"""
import math
from typing import NamedTuple

import numpy as np
from numba import njit
from torch import Tensor

from ce_mm.ops.backends.numba_products import add_products, add_sums, block_of, sum_rows
from ce_mm.ops.backends.numba_threads import BEGUN, TAKEN, Kernel, bits, reader, take, threads_for
from ce_mm.ops.backends.numba_tiles import POSITIONS, STEP, is_zero, load, store, view_gradient
from ce_mm.ops.backends.numba_vectors import LANES, OPTIONS, get_double, get_float, put_double, put_float
from ce_mm.ops.backends.numba_views import addresses, at_a_time, kinds, scratch_of, view_of


class Sums(NamedTuple):
    """The arguments of the kernel; addresses may be 0 for what is not there. Without a gradient it takes moments."""

    n: int
    c: int
    g: int
    p: int
    row: int  #: The step in a map from one channel to the next, in elements,
    position: int  #: and from one position to the next.
    x: int
    x_kind: int
    shift: int
    shift_step: int  #: from one sample's to the next's, 0 where they share it
    no_shift: int
    gradient: int
    rectified: int
    kept: int  #: where to write what of the gradient the rectifier let through
    gradient_kind: int
    rectified_kind: int
    ceiling: int
    sums: int
    product: int
    splits: int  #: units for each group
    per_sample: int
    scratch: int
    scratch_step: int  #: from one thread's to the next's


#: Units that a map gives at least, if it has as many samples and groups.
UNITS = 64
_read = reader(len(Sums._fields))


def sums(
    x: Tensor,
    shift: Tensor,
    group_size: int,
    products: bool,
    per_sample: bool,
    gradient: Tensor | None = None,
    rectified: Tensor | None = None,
    ceiling: float = math.inf,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the kernel: over positions the sums of the gradient and of gradient ⊙ z, (2, N, C), and of gradient zᵀ.

    Without a gradient the mean and variance of z, and the mean of z zᵀ; (N or 1, C/g, g, g), or empty.
    """
    n, c = x.shape[:2]
    group_size = group_size if products else at_a_time(x)
    threads, groups = threads_for(x.numel()), c // group_size
    splits = min(max(UNITS // groups, 1), n)  # whatever the number of threads, for the same bits
    found, product = shift.new_empty(2, n, c), shift.new_empty(0)
    if products:
        product = shift.new_empty(n if per_sample else splits, groups, group_size, group_size)
    scratch = 3 * group_size * STEP + (group_size + 2) * group_size * 8 + -(-group_size // 16) * 64
    arguments = Sums(  # type: ignore[misc]  # the fields that stars fill cannot be counted
        *view_of(x, shift, group_size),
        *addresses(gradient, rectified, kept),
        *kinds(gradient, rectified),
        ceiling=bits(ceiling),
        sums=found.data_ptr(),
        product=product.data_ptr(),
        splits=splits,
        per_sample=per_sample,
        scratch=scratch_of(threads * scratch),
        scratch_step=scratch,
    )
    _kernel(arguments, threads)
    if products and not per_sample and splits > 1:
        product = product.sum(0, keepdim=True)
    return found, product


def _sum_units(address):
    a = Sums(*_read(address))
    scratch = a.scratch + take(address + BEGUN, 1) * a.scratch_step
    while True:
        unit = take(address + TAKEN, 1)
        if unit >= a.c // a.g * a.splits:
            break
        _sum_unit(a, unit, scratch)


@njit(inline="always", **OPTIONS)
def _sum_unit(a, unit, scratch):
    group, split = unit // a.splits, unit % a.splits
    channel, groups, size = group * a.g, a.c // a.g, a.g * STEP
    right, left, spare, totals = scratch, scratch + size, scratch + 2 * size, scratch + 3 * size
    if not a.gradient:
        left = right
    out, filled = totals + a.g * 16, 0
    middles = a.no_shift if a.gradient else out + a.g * a.g * 8
    for i in range(a.g * (a.g + 2)):
        put_double(totals + i * 8, 0.0)
    for sample in range(a.n * split // a.splits, a.n * (split + 1) // a.splits):
        start = 0
        while start < a.p:
            m = min(POSITIONS - filled, a.p - start)
            _take_tile(a, sample, channel, start, left + filled * 4, right + filled * 4, spare, m)
            of_sums, other = left + filled * 4, right + filled * 4
            if not a.gradient:
                shift = a.shift + sample * a.shift_step + channel * 4
                if not is_zero(shift, a.g):  # where it lies far from a sample, z has lost bits that x has
                    load(a, a.x, a.x_kind, sample, channel, start, a.no_shift, spare, m)
                    of_sums = spare
                other = of_sums
                if start == 0:
                    _choose_middles(a.g, of_sums, middles)
            add_sums(a.g, of_sums, other, m, middles, totals)
            start += m
            if a.product:
                filled += m
                if filled == POSITIONS:
                    done = start // a.p  # 1 where the tile ended with its sample
                    add_products(a, left, right, filled, out, sample + done, channel, start - done * a.p)
                    filled = 0
        _store_sums(a, totals, middles, sample, channel)
        if a.product and a.per_sample:
            _store_products(a, out, sample * groups + group, left, right, filled)
            filled = 0
    if a.product and not a.per_sample:
        _store_products(a, out, split * groups + group, left, right, filled)


@njit(inline="always", **OPTIONS)
def _choose_middles(g, tile, middles):
    """A value of each row of a sample, near its mean: about that its variance does not cancel, wherever it lies."""
    for i in range(g):
        value = get_float(tile + i * STEP)
        put_float(middles + i * 4, value if abs(value) < np.inf else np.float32(0))


@njit(inline="always", **OPTIONS)
def _take_tile(a, sample, channel, start, left, right, spare, m):
    """Load z, and the gradient, and write what of it is to be kept."""
    load(a, a.x, a.x_kind, sample, channel, start, a.shift + sample * a.shift_step + channel * 4, right, m)
    if a.rectified:
        view_gradient(a, sample, channel, start, left, spare, m)
    elif a.gradient:
        load(a, a.gradient, a.gradient_kind, sample, channel, start, a.no_shift, left, m)
    if a.kept:
        store(a, left, a.kept, a.gradient_kind, sample, channel, start, m)


@njit(inline="always", **OPTIONS)
def _store_sums(a, totals, middles, sample, channel):
    """Store those of one sample, and clear them; without a gradient, mean and variance."""
    rows = sum_rows(a.g)
    for block in range(0, a.g, rows):
        for i in range(rows):
            place = totals + (2 * block + i) * 8
            first, second = get_double(place), get_double(place + rows * 8)
            if not a.gradient:
                first, second = first / a.p, second / a.p
                second -= first * first
                shift = get_float(a.shift + sample * a.shift_step + (channel + block + i) * 4)
                first += np.float64(get_float(middles + (block + i) * 4)) - np.float64(shift)
            put_float(a.sums + (sample * a.c + channel + block + i) * 4, np.float32(first))
            put_float(a.sums + ((a.n + sample) * a.c + channel + block + i) * 4, np.float32(second))
            put_double(place, 0.0)
            put_double(place + rows * 8, 0.0)


@njit(**OPTIONS)
def _store_products(a, out, index, left, right, filled):
    """Finish a matrix of sums with what of a tile is filled, store it, and clear the sums for the next."""
    whole = (filled + LANES - 1) // LANES * LANES
    for i in range(a.g):
        for p in range(filled, whole):
            put_float(right + i * STEP + p * 4, np.float32(0))
            put_float(left + i * STEP + p * 4, np.float32(0))
    add_products(a, left, right, whole, out, a.n, index, index)  # there is no such sample to fetch ahead
    (rows, columns), symmetric, factor = block_of(a.g), left == right, 1.0
    if symmetric:
        factor = 1.0 / (a.p * (1 if a.per_sample else a.n))
    product = a.product + index * a.g * a.g * 4
    for i in range(0, a.g, rows):
        for j in range(0, i + rows if symmetric else a.g, columns):
            block = out + (i * a.g + j * rows) * 8
            for row in range(i, i + rows):
                for column in range(j, j + columns):
                    value = np.float32(get_double(block) * factor)
                    block += 8
                    put_float(product + (row * a.g + column) * 4, value)
                    if symmetric:
                        put_float(product + (column * a.g + row) * 4, value)
    for i in range(a.g * a.g):
        put_double(out + i * 8, 0.0)


_kernel = Kernel(_sum_units)
