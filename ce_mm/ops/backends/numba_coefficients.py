"""The small tensors of one layer on a CPU: the chain of a batch norm with both branches, and the averages.

There a call of PyTorch's costs more than its arithmetic. So the whole chain is one kernel forward and one backward,
each a row of phases, whose units of work the threads take in turn: a unit waits until all of the phases before it are
done (:func:`ce_mm.ops.backends.numba_threads.wait`). How a phase is cut into units depends on shapes alone, and so no
result on who does what.
"""
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ce_mm.ops.backends import plain
from ce_mm.ops.backends.numba_matrices import (
    GRADIENT_ROWS,
    STRIP_VECTORS,
    WEIGHT_ROWS,
    add_matrix,
    batch_statistics,
    combine_matrices,
    combine_matrices_backward,
    combine_samples,
    combine_samples_backward,
    covariance_backward,
    deviation_of,
    get_whole,
    layer_norm,
    layer_norm_backward,
    move,
    multiply,
    norm_affine,
    norm_backward,
    normalised_covariance,
    put_flag,
    rectifier_backward,
    shift_of,
    spread,
    statistics_of_x,
    store_dense,
    subtract,
    weigh_samples,
    weigh_samples_backward,
    weight_gradient,
)
from ce_mm.ops.backends.numba_products import ROWS
from ce_mm.ops.backends.numba_threads import (
    BEGUN,
    FIRST_ARGUMENT,
    TAKEN,
    Kernel,
    bits,
    finish,
    reader,
    take,
    threads_for,
    wait,
)
from ce_mm.ops.backends.numba_vectors import LANES, OPTIONS, as_number, get_double, get_float, put_double, put_float
from ce_mm.ops.backends.numba_views import addresses, scratch_of
from ce_mm.ops.backends.plain import contiguous
from ce_mm.ops.reweighting import MIN_VARIANCE
from ce_mm.ops.types import Average, Averages, Chain, Coefficients, Parameters

#: The widest group that it takes.
COEFFICIENTS_GROUP = 64
#: The most units of a phase.
UNITS = 32
#: Columns of a weight that are taken together.
STRIP = STRIP_VECTORS * LANES


class Forward(NamedTuple):
    """The arguments of the kernel that computes the coefficients and moves the averages; without ``second`` these are
    the statistics."""

    done: int  #: how many units are, 0 to begin with
    far: int  #: 0, and after the call 1 where a channel was found to lie far from the shift
    checks: int  #: whether to look if one does, and then to move no average
    n: int
    c: int
    g: int
    hidden: int
    iterations: int
    instance: int
    second: int
    shift: int
    norm_weight: int
    norm_bias: int
    fc1: int
    ln_weight: int
    ln_bias: int
    fc2: int
    mix: int
    running_mean: int
    running_variance: int
    running_whitening: int
    running_inv_std_scale: int
    mean: int  #: of z
    variance: int
    whitening: int
    inv_std_scale: int
    weight: int
    diagonal: int
    bias: int
    finite: int
    between: int
    scratch: int
    scratch_step: int  #: from one thread's to the next's, in bytes
    positions: int
    norm_momentum: int
    momentum: int
    norm_eps: int
    eps: int
    bessel: int
    ln_eps: int


#: Where that word stands among them.
FAR = Forward._fields.index("far")


class Backward(NamedTuple):
    """The arguments of the kernel that computes the gradients of what :class:`Forward`'s took."""

    done: int
    n: int
    c: int
    g: int
    hidden: int
    iterations: int
    dweight: int
    ddiagonal: int
    dbias: int
    instance: int
    second: int
    mean: int
    whitening: int
    inv_std_scale: int
    fc1: int
    ln_weight: int
    fc2: int
    mix: int
    between: int
    slope: int
    slopes: int
    offset: int
    dnorm_weight: int
    dnorm_bias: int
    dfc1: int
    dln_weight: int
    dln_bias: int
    dfc2: int
    dmix: int
    gradients: int  #: of what lies between
    scratch: int
    scratch_step: int
    positions: int
    eps: int
    bessel: int


class Between(NamedTuple):
    """Where forward leaves to backward what it has."""

    spread: int  #: σ̃²_n, (N, C)
    gate: int  #: what the sigmoid is taken of, then what it gives, (N, C)
    normed: int  #: W1 σ̃², then its LayerNorm without parameters, (N, C/r)
    active: int  #: what is behind the ReLU, (N, C/r)
    ln_inv_std: int  #: (N,)
    scale: int  #: a, (C,)
    offset: int  #: b, (C,)
    inv_std: int  #: (C,)
    moved: int  #: what moves the mean and the variance of x, (C,) each
    totals: int  #: the sums of σ̃² of each unit, float64
    deviations: int  #: of each unit, 0 where all of its statistics are finite
    far: int  #: of each unit, how many of its channels lie far from the shift


class Gradients(NamedTuple):
    """Where a phase of backward leaves to the next what it has."""

    logit: int  #: of what the sigmoid is taken of, (N, C)
    spread: int  #: (N, C)
    hidden: int  #: of W1 σ̃², (N, C/r)
    sums: int  #: of a, of b, of what of t the samples share, of m, (C,) each
    mix: int  #: a part of each unit, float64
    inv_std_scale: int  #: likewise


_read_forward, _read_backward = reader(len(Forward._fields)), reader(len(Backward._fields))


@njit(inline="always", **OPTIONS)
def _between(address, n, c, hidden):
    gate = address + 4 * n * c
    normed = gate + 4 * n * c
    active = normed + 4 * n * hidden
    inv_std = active + 4 * n * hidden
    scale = inv_std + 4 * n
    moved = scale + 12 * c
    totals = moved + 8 * c
    return Between(
        address, gate, normed, active, inv_std, scale, scale + 4 * c, scale + 8 * c, moved, totals, totals + 8 * UNITS,
        totals + 16 * UNITS,
    )  # fmt: skip


@njit(inline="always", **OPTIONS)
def _gradients(address, n, c, hidden):
    of_spread = address + 4 * n * c
    of_hidden = of_spread + 4 * n * c
    sums = of_hidden + 4 * n * hidden
    mix = sums + 16 * c
    return Gradients(address, of_spread, of_hidden, sums, mix, mix + 8 * UNITS)


@njit(inline="always", **OPTIONS)
def _grain(size, block):
    """How many of so many things, in blocks of so many, are one unit's."""
    return ((size + block - 1) // block + UNITS - 1) // UNITS * block


@njit(inline="always", **OPTIONS)
def _units(size, block):
    grain = _grain(size, block)
    return (size + grain - 1) // grain


@njit(inline="always", **OPTIONS)
def _part(unit, size, block):
    """The first, and the one behind the last, of the things that a unit has."""
    grain = _grain(size, block)
    return unit * grain, min((unit + 1) * grain, size)


def _bytes_of_matrix(g: int) -> int:
    """Of one in scratch memory."""
    return (g + ROWS - 1) // ROWS * ROWS * ((g + LANES - 1) // LANES * LANES) * 4


_matrix_size = njit(inline="always", **OPTIONS)(_bytes_of_matrix)  # the same, for kernels


@njit(inline="always", **OPTIONS)
def _ratio(mix):
    return 1.0 / (1.0 + math.exp(-get_float(mix)))


@njit(inline="always", **OPTIONS)
def _total(parts, count):
    total = 0.0
    for i in range(count):
        total += get_double(parts + 8 * i)
    return total


@njit(inline="always", **OPTIONS)
def _step(root, sigma, g, by_sigma, by_root):
    """What a step of Newton-Schulz multiplies: P Σ and P² Σ."""
    multiply(root, sigma, g, 0, np.float32(0), np.float32(1), by_sigma)
    multiply(root, by_sigma, g, 0, np.float32(0), np.float32(1), by_root)


@njit(**OPTIONS)
def _next_root(root, by_root, g, out):
    multiply(root, by_root, g, root, np.float32(1.5), np.float32(-0.5), out)


@njit(**OPTIONS)
def _norm_channels(a, b, unit, scratch):
    """From the moments of some groups to a, b, σ̃² and Σ^(-1/2)."""
    first, end = _part(unit, a.c // a.g, 1)
    start, count, row = first * a.g * 4, (end - first) * a.g, a.c * 4
    mean, variance, scale, weight, bias = a.mean + start, a.variance + start, b.scale + start, 0, 0
    if a.second:
        batch_statistics(a.instance + start, row, a.n, count, mean, variance)
        values = a.n * a.positions
        deviation, far = statistics_of_x(
            mean, variance, a.shift + start, np.float32(values / max(values - 1, 1)), count, b.moved + start,
            b.moved + row + start,
        )  # fmt: skip
        put_double(b.far + unit * 8, np.float64(far))
    else:
        subtract(a.running_mean + start, a.shift + start, count, mean)
    if a.norm_weight:
        weight = a.norm_weight + start
    if a.norm_bias:
        bias = a.norm_bias + start
    norm_affine(
        mean, variance, weight, bias, as_number(a.norm_eps), count, b.inv_std + start, scale, b.offset + start
    )  # fmt: skip
    variances = a.instance + (a.n * a.c) * 4 + start
    total = spread(variances, row, a.n, scale, as_number(a.bessel), count, b.spread + start)
    put_double(b.totals + unit * 8, total)
    if not a.second:
        return
    size, g = _matrix_size(a.g), a.g
    sigma, by_sigma, by_root, root, other = (
        scratch, scratch + size, scratch + 2 * size, scratch + 3 * size, scratch + 4 * size
    )  # fmt: skip
    for group in range(first, end):
        channel, matrix = (group - first) * g * 4, group * g * g * 4
        normalised_covariance(
            a.second + matrix, mean + channel, scale + channel, g, as_number(a.eps), by_sigma, sigma, root
        )  # fmt: skip
        for _ in range(a.iterations - 1):
            _step(root, sigma, g, by_sigma, by_root)
            _next_root(root, by_root, g, other)
            root, other = other, root
        store_dense(root, g, a.whitening + matrix)
    deviation += deviation_of(a.whitening + first * g * g * 4, (end - first) * g * g)
    put_double(b.deviations + unit * 8, np.float64(deviation))


@njit(**OPTIONS)
def _move_channels(a, b, unit, units, inv_std_scale, found_far):
    """Move the averages of some groups, the first unit that of all too; none if a value is not finite."""
    far = _total(b.far, units) > 0 and a.checks
    finite = _total(b.deviations, units) + np.float64(inv_std_scale - inv_std_scale) == 0
    if unit == 0:
        put_float(a.inv_std_scale, inv_std_scale)
        put_flag(a.finite, finite)
        if far:
            take(found_far, 1)
    if far or not finite:
        return
    (first, end), g = _part(unit, a.c // a.g, 1), a.g
    start, count, matrix = first * g * 4, (end - first) * g, first * g * g * 4
    of_norm, of_others = as_number(a.norm_momentum), as_number(a.momentum)
    move(a.running_mean + start, b.moved + start, count, of_norm)
    move(a.running_variance + start, b.moved + a.c * 4 + start, count, of_norm)
    move(a.running_whitening + matrix, a.whitening + matrix, count * g, of_others)
    if unit == 0:
        move(a.running_inv_std_scale, a.inv_std_scale, 1, of_others)


@njit(**OPTIONS)
def _combine_channels(a, b, unit, units, scratch, found_far):
    """The gate of some groups, and what the branches give together."""
    if a.second:
        mean = _total(b.totals, units) / a.n / a.c
        if mean < MIN_VARIANCE:
            mean = MIN_VARIANCE  # a maximum would hide a NaN
        inv_std_scale = 1.0 / math.sqrt(mean)
        _move_channels(a, b, unit, units, np.float32(inv_std_scale), found_far)
    else:
        inv_std_scale = np.float64(get_float(a.inv_std_scale))
    first, end = _part(unit, a.c // a.g, 1)
    g, start, count = a.g, first * a.g * 4, (end - first) * a.g
    weigh_samples(a.fc2, a.hidden, first * g, end * g, b.active, a.n, b.gate, a.c * 4)
    ratio = _ratio(a.mix)
    for group in range(first, end):
        channel, matrix = group * g * 4, group * g * g * 4
        combine_matrices(
            a.whitening + matrix, np.float32(ratio), b.scale + channel, b.offset + channel, g, a.weight + matrix,
            scratch + channel - start,
        )  # fmt: skip
    combine_samples(
        b.gate + start, np.float32((1.0 - ratio) * inv_std_scale), b.scale + start, b.offset + start, scratch, a.c * 4,
        a.n, count, a.diagonal + start, a.bias + start,
    )  # fmt: skip


def _coefficients(address):
    a = Forward(*_read_forward(address))
    b = _between(a.between, a.n, a.c, a.hidden)
    scratch = a.scratch + take(address + BEGUN, 1) * a.scratch_step
    done, groups = address + FIRST_ARGUMENT, _units(a.c // a.g, 1)
    normed = groups + _units(a.hidden, WEIGHT_ROWS)
    combined = normed + a.n
    while True:
        unit = take(address + TAKEN, 1)
        if unit < groups:
            _norm_channels(a, b, unit, scratch)
        elif unit < normed:
            wait(done, groups)
            first, end = _part(unit - groups, a.hidden, WEIGHT_ROWS)
            weigh_samples(a.fc1, a.c, first, end, b.spread, a.n, b.normed, a.hidden * 4)
        elif unit < combined:
            wait(done, normed)
            sample, row = unit - normed, (unit - normed) * a.hidden * 4
            inv_std = layer_norm(
                b.normed + row, a.hidden, as_number(a.ln_eps), a.ln_weight, a.ln_bias, b.active + row
            )  # fmt: skip
            put_float(b.ln_inv_std + sample * 4, inv_std)
        elif unit < combined + groups:
            wait(done, combined)
            _combine_channels(a, b, unit - combined, groups, scratch, done + 8 * FAR)
        else:
            break
        finish(done)


@njit(**OPTIONS)
def _root_backward(gradient, sigma, root, iterations, g, size, scratch):
    """From the gradient of P_T to -2 times that of Σ, from P_1 on; returns where it lies.

    P, P Σ and P² Σ are symmetric, and P's of all steps are written behind the first.
    """
    steps, left, right, dsigma, other = iterations - 1, scratch, scratch + size, scratch + 2 * size, scratch + 3 * size
    products = scratch + 4 * size
    for step in range(steps):
        here, by_sigma = root + step * size, products + 2 * step * size
        _step(here, sigma, g, by_sigma, by_sigma + size)
        if step < steps - 1:
            _next_root(here, by_sigma + size, g, here + size)
    zero, one, half = np.float32(0), np.float32(1), np.float32(-0.5)
    start, of_start = 0, zero
    for step in range(steps - 1, -1, -1):
        here, by_sigma = root + step * size, products + 2 * step * size
        # Of P' = 1.5 P - 0.5 P (P (P Σ)).
        multiply(here, gradient, g, 0, zero, one, left)
        multiply(here, left, g, 0, zero, one, right)
        multiply(here, right, g, start, of_start, one, dsigma)
        start, of_start = dsigma, one
        multiply(gradient, by_sigma + size, g, gradient, np.float32(1.5), half, other)
        multiply(left, by_sigma, g, other, one, half, other)
        multiply(right, sigma, g, other, one, half, other)
        gradient, other = other, gradient
        if not step:
            add_matrix(dsigma, g, gradient)
    return gradient


@njit(**OPTIONS)
def _add_transposed(matrix, g, factor):
    """A matrix and what it is transposed, both times a factor, in the place of it."""
    for i in range(g):
        for j in range(i + 1):
            one, other = matrix + (i * g + j) * 4, matrix + (j * g + i) * 4
            total = (get_float(one) + get_float(other)) * factor
            put_float(one, total)
            put_float(other, total)


@njit(**OPTIONS)
def _combine_channels_backward(a, b, d, unit, scratch):
    """From the gradients of the coefficients of some groups to those of the logit, of a, b and E, and to S."""
    first, end = _part(unit, a.c // a.g, 1)
    g, start, count, row = a.g, first * a.g * 4, (end - first) * a.g, a.c * 4
    size, ratio, inv_std_scale = _matrix_size(g), _ratio(a.mix), get_float(a.inv_std_scale)
    of_rest = combine_samples_backward(
        a.ddiagonal + start, a.dbias + start, b.gate + start, np.float32((1.0 - ratio) * inv_std_scale),
        b.scale + start, b.offset + start, row, a.n, count, d.logit + start, d.sums + start, row,
    )  # fmt: skip
    put_double(d.inv_std_scale + unit * 8, (1.0 - ratio) * of_rest)
    of_ratio = -inv_std_scale * of_rest
    sigma, of_z, gradient, root = scratch, scratch + size, scratch + 2 * size, scratch + 3 * size
    for group in range(first, end):
        channel, matrix = group * g * 4, group * g * g * 4
        scale, mean, sums = b.scale + channel, a.mean + channel, d.sums + channel
        of_ratio += combine_matrices_backward(
            a.dweight + matrix, a.whitening + matrix, np.float32(ratio), scale, b.offset + channel, g, sums, row,
            gradient,
        )  # fmt: skip
        if a.second:
            trace = normalised_covariance(
                a.second + matrix, mean, scale, g, as_number(a.eps), of_z, sigma, root
            )  # fmt: skip
            dsigma = _root_backward(
                gradient, sigma, root, a.iterations, g, size, root + max(a.iterations - 1, 1) * size
            )  # fmt: skip
            covariance_backward(dsigma, sigma, of_z, trace, mean, scale, g, a.slope + matrix, sums, row)
            _add_transposed(a.slope + matrix, g, np.float32(1.0 / a.positions / a.n))
    put_double(d.mix + unit * 8, of_ratio * ratio * (1.0 - ratio))


@njit(**OPTIONS)
def _hidden_backward(a, b, d, unit):
    """Through W2 and the ReLU, for some of the hidden channels."""
    first, end = _part(unit, a.hidden, STRIP)
    start, row = first * 4, a.hidden * 4
    weigh_samples_backward(a.fc2 + start, row, a.c, end - first, d.logit, a.n, d.hidden + start)
    rectifier_backward(
        d.hidden + start, b.active + start, b.normed + start, row, a.n, end - first, a.dln_weight + start,
        a.dln_bias + start,
    )  # fmt: skip


@njit(**OPTIONS)
def _norm_channels_backward(a, b, d, unit, groups):
    """Through W1 and the norm, for some channels."""
    first, end = _part(unit, a.c, STRIP)
    start, count, row = first * 4, end - first, a.c * 4
    weigh_samples_backward(a.fc1 + start, row, a.hidden, count, d.hidden, a.n, d.spread + start)
    common, share = 0.0, 0.0
    if a.second:
        share, mean = 1.0 / a.n, _total(b.totals, groups) / a.n / a.c
        if not mean < MIN_VARIANCE:  # where s is clamped nothing gets through
            common = -0.5 * _total(d.inv_std_scale, groups) * np.float64(get_float(a.inv_std_scale)) ** 3 / a.n / a.c
    norm_backward(
        a.instance + start, d.spread + start, row, a.n, count, a.mean + start, b.scale + start, b.inv_std + start,
        as_number(a.bessel), np.float32(common), np.float32(share), np.float32(1.0 / a.positions), d.sums + start, row,
        a.dnorm_weight + start, a.dnorm_bias + start, a.slopes + start, a.offset + start,
    )  # fmt: skip
    if unit == 0:
        put_float(a.dmix, np.float32(_total(d.mix, groups)))


def _coefficients_backward(address):
    a = Backward(*_read_backward(address))
    b, d = _between(a.between, a.n, a.c, a.hidden), _gradients(a.gradients, a.n, a.c, a.hidden)
    scratch = a.scratch + take(address + BEGUN, 1) * a.scratch_step
    done, groups = address + FIRST_ARGUMENT, _units(a.c // a.g, 1)
    rectified = groups + _units(a.hidden, STRIP)
    normed = rectified + a.n
    of_fc1 = normed + _units(a.c, STRIP)
    of_fc2 = of_fc1 + _units(a.hidden, GRADIENT_ROWS)
    while True:
        unit = take(address + TAKEN, 1)
        if unit < groups:
            _combine_channels_backward(a, b, d, unit, scratch)
        elif unit < rectified:
            wait(done, groups)
            _hidden_backward(a, b, d, unit - groups)
        elif unit < normed:
            wait(done, rectified)
            sample, row = unit - rectified, (unit - rectified) * a.hidden * 4
            layer_norm_backward(
                d.hidden + row, b.normed + row, a.ln_weight, get_float(b.ln_inv_std + sample * 4), a.hidden
            )  # fmt: skip
        elif unit < of_fc1:
            wait(done, normed)
            _norm_channels_backward(a, b, d, unit - normed, groups)
        elif unit < of_fc2:
            wait(done, normed)
            first, end = _part(unit - of_fc1, a.hidden, GRADIENT_ROWS)
            weight_gradient(d.hidden, a.hidden, first, end, b.spread, a.n, a.c, a.dfc1)
        elif unit < of_fc2 + _units(a.c, GRADIENT_ROWS):
            wait(done, normed)
            first, end = _part(unit - of_fc2, a.c, GRADIENT_ROWS)
            weight_gradient(d.logit, a.c, first, end, b.active, a.n, a.hidden, a.dfc2)
        else:
            break
        finish(done)


def _move_averages(address):
    count, finite = _read_averages(address)
    first, size = address + FIRST_ARGUMENT + 16, 32
    total = np.float32(0)
    for i in range(count):
        here = first + i * size
        total += deviation_of(get_whole(here + 8), get_whole(here + 16))
    put_flag(finite, total == 0)
    if total == 0:
        for i in range(count):
            here = first + i * size
            move(get_whole(here), get_whole(here + 8), get_whole(here + 16), as_number(get_whole(here + 24)))


def _needed_shift(address):
    shift_of(*_read_vectors(address))


_read_averages, _read_vectors = reader(2), reader(4)
_shift_kernel, _average_kernel = Kernel(_needed_shift), Kernel(_move_averages)
_forward_kernel, _backward_kernel = Kernel(_coefficients), Kernel(_coefficients_backward)
_bits = functools.lru_cache(1024)(bits)


def needed_shift(mean: Tensor, variance: Tensor) -> Tensor:
    """As :func:`ce_mm.ops.needed_shift`, of dense vectors."""
    shift = mean.new_empty(mean.shape[0])
    _shift_kernel((mean.shape[0], mean.data_ptr(), variance.data_ptr(), shift.data_ptr()))
    return shift


def coefficients(
    instance: Tensor,
    second: Tensor | None,
    shift: Tensor,
    parameters: Parameters,
    averages: Averages,
    chain: Chain,
    checks: bool,
) -> tuple[Coefficients, Tensor | None, tuple[Tensor | None, ...]] | None:
    """As a backend's; see :mod:`ce_mm.ops.backends`."""
    _, n, c = instance.shape
    g, hidden, new = chain.group_size, parameters.fc1.shape[0], instance.new_empty  # as quick as torch.empty
    mean, finite = new(c), None
    if second is None:
        of_x = mean, *averages[1:]
        momenta = 0, 0
    else:
        of_x = mean, new(c), new(c // g, g, g), new(1)
        finite = new((), dtype=torch.bool)
        momenta = _bits(chain.norm_momentum), _bits(chain.momentum)
    results = Coefficients(new(1, c // g, g, g), new(n, c), new(n, c))
    between = new(2 * n * (c + hidden) + n + 5 * c + 6 * UNITS)
    threads = _threads(n, chain, c, hidden)
    step = 5 * _bytes_of_matrix(g) + 4 * c
    words = _forward_kernel(
        Forward(  # type: ignore[call-arg]  # the fields that stars fill cannot be counted
            0, 0, checks, n, c, g, hidden, chain.iterations,
            *addresses(instance, second, shift, *parameters, *averages, *of_x, *results, finite, between),
            scratch_of(threads * step), step, chain.positions, *momenta,
            *map(_bits, (chain.norm_eps, chain.eps, chain.bessel, chain.ln_eps)),
        ),
        threads,
    )  # fmt: skip
    if words[FAR]:
        return None
    if finite is not None:
        torch.autograd.graph.increment_version(averages)  # autograd's check of saved tensors goes by it
    _, _, whitening, inv_std_scale = of_x
    return results, finite, (instance, second, mean, whitening, inv_std_scale, between)


def coefficients_backward(
    kept: Sequence[Any],
    parameters: Parameters,
    chain: Chain,
    dweight: Tensor,
    ddiagonal: Tensor,
    dbias: Tensor,
) -> tuple[tuple[Tensor | None, Tensor, Tensor], Parameters]:
    """As a backend's; see :mod:`ce_mm.ops.backends`."""
    instance, second, mean, whitening, inv_std_scale, between = kept
    _, _, fc1, ln_weight, _, fc2, mix = parameters
    _, n, c = instance.shape
    g, hidden, new = chain.group_size, fc1.shape[0], instance.new_empty
    slope, slopes, offset = None if second is None else new(1, c // g, g, g), new(n, c), new(n, c)
    of_parameters = Parameters(new(c), new(c), new(hidden, c), new(hidden), new(hidden), new(c, hidden), new(1))
    threads = _threads(n, chain, c, hidden)
    gradients = 4 * (n * (2 * c + hidden) + 4 * c + 4 * UNITS)
    step = (5 + 3 * chain.iterations) * _bytes_of_matrix(g)
    scratch = scratch_of(gradients + threads * step)
    douts = [contiguous(dout) for dout in (dweight, ddiagonal, dbias)]  # which hold what the kernel reads
    _backward_kernel(
        Backward(  # type: ignore[call-arg]  # likewise
            0, n, c, g, hidden, chain.iterations,
            *addresses(
                *douts, instance, second, mean, whitening, inv_std_scale, fc1, ln_weight, fc2, mix, between,
                slope, slopes, offset, *of_parameters,
            ),
            scratch, scratch + gradients, step, chain.positions, _bits(chain.eps), _bits(chain.bessel),
        ),
        threads,
    )  # fmt: skip
    return (slope, slopes, offset), of_parameters


def move_averages(averages: Sequence[Average], present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As :func:`ce_mm.ops.backends.plain.move_averages`, in one kernel; not of what would need another one."""
    finite = averages[0].value.new_empty((), dtype=torch.bool)
    arguments, buffers = [len(averages), finite.data_ptr()], []
    for buffer, value, momentum in averages:
        is_single = buffer.dtype == value.dtype == torch.float32
        is_dense = buffer.is_contiguous() and value.is_contiguous()
        is_dense &= buffer.shape == value.shape and buffer.device == value.device
        if present is not None or not is_single or not is_dense or isinstance(momentum, Tensor):
            return plain.move_averages(averages, present)
        arguments += buffer.data_ptr(), value.data_ptr(), value.numel(), _bits(momentum)
        buffers.append(buffer)
    _average_kernel(arguments)
    torch.autograd.graph.increment_version(buffers)  # autograd's check of saved tensors goes by it, as after lerp_
    return finite, finite


def _threads(n: int, chain: Chain, c: int, hidden: int) -> int:
    """How many work on a layer."""
    return threads_for(c * (chain.group_size * chain.iterations + n * hidden) // 8)
