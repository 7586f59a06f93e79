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
from torch.autograd.function import once_differentiable

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
    deviation,
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
    spread,
    store_dense,
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
from ce_mm.ops.reweighting import MIN_VARIANCE, Gate
from ce_mm.ops.types import Average, Coefficients, Moments, Statistics

#: The widest group that it takes.
COEFFICIENTS_GROUP = 64
#: The most units of a phase.
UNITS = 32
#: Columns of a weight that are taken together.
STRIP = STRIP_VECTORS * LANES


class Forward(NamedTuple):
    """The arguments of the kernel that computes the coefficients; without ``second`` all statistics are given."""

    done: int  #: how many units are, 0 to begin with
    n: int
    c: int
    g: int
    hidden: int
    iterations: int
    instance: int
    second: int
    mean: int
    variance: int
    whitening: int
    inv_std_scale: int
    norm_weight: int
    norm_bias: int
    fc1: int
    ln_weight: int
    ln_bias: int
    fc2: int
    mix: int
    weight: int
    diagonal: int
    bias: int
    between: int
    scratch: int
    scratch_step: int  #: from one thread's to the next's, in bytes
    norm_eps: int
    eps: int
    bessel: int
    ln_eps: int


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
    dinstance: int
    dsecond: int
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
    totals: int  #: the sums of σ̃² of each unit, float64


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
    return Between(address, gate, normed, active, inv_std, scale, scale + 4 * c, scale + 8 * c, scale + 12 * c)


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


@njit(**OPTIONS)
def _combine_channels(a, b, unit, units, scratch):
    """The gate of some groups, and what the branches give together."""
    if a.second:
        mean = _total(b.totals, units) / a.n / a.c
        if mean < MIN_VARIANCE:
            mean = MIN_VARIANCE  # a maximum would hide a NaN
        inv_std_scale = 1.0 / math.sqrt(mean)
        if unit == 0:
            put_float(a.inv_std_scale, np.float32(inv_std_scale))
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
            _combine_channels(a, b, unit - combined, groups, scratch)
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
def _combine_channels_backward(a, b, d, unit, scratch):
    """From the gradients of the coefficients of some groups to those of the logit, of a, b and E."""
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
            covariance_backward(dsigma, sigma, of_z, trace, mean, scale, g, a.dsecond + matrix, sums, row)
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
        as_number(a.bessel), np.float32(common), np.float32(share), d.sums + start, row, a.dnorm_weight + start,
        a.dnorm_bias + start, a.dinstance + start,
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
        total += deviation(get_whole(here + 8), get_whole(here + 16))
    put_flag(finite, total == 0)
    if total == 0:
        for i in range(count):
            here = first + i * size
            move(get_whole(here), get_whole(here + 8), get_whole(here + 16), as_number(get_whole(here + 24)))


_read_averages = reader(2)
_forward_kernel, _backward_kernel = Kernel(_coefficients), Kernel(_coefficients_backward)
_average_kernel = Kernel(_move_averages)
_bits = functools.cache(bits)


def coefficients(
    moments: Moments,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
    gate: Gate,
    mix: Tensor,
    known: Statistics,
    eps: float,
    iterations: int,
    bessel: float,
) -> tuple[Coefficients, Statistics]:
    """The chain of :func:`ce_mm.ops.coefficients` for a batch norm with both branches, as one autograd function.

    Args:
        moments, mix: as there.
        norm_weight, norm_bias, norm_eps: of the batch norm, γ and β, (C,), each None where it has none.
        gate: f.
        known: all statistics, which no gradient reaches, or none.
        eps: ε, added to the diagonal of Σ.
        iterations: T.
        bessel: a factor of σ̃².
    """
    mean, variance, whitening, inv_std_scale, _, _ = known
    fc1, ln_weight, ln_bias, fc2, ln_eps = gate
    second = moments.second if mean is None else None
    tensors = (
        moments.instance, second, mean, variance, whitening, inv_std_scale, norm_weight, norm_bias, fc1, ln_weight,
        ln_bias, fc2, mix,
    )  # fmt: skip
    tensors = [tensor if tensor is None or tensor.is_contiguous() else tensor.contiguous() for tensor in tensors]
    results = _Chain.apply(*tensors, (_bits(norm_eps), _bits(eps), _bits(bessel), _bits(ln_eps)), iterations)
    if second is None:
        return Coefficients(*results), known
    count = moments.instance.shape[1] * moments.positions
    return Coefficients(*results[:3]), Statistics(*results[3:], count)


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        instance: Tensor,
        second: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        whitening: Tensor | None,
        inv_std_scale: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        fc1: Tensor,
        ln_weight: Tensor,
        ln_bias: Tensor,
        fc2: Tensor,
        mix: Tensor,
        numbers: tuple[int, ...],
        iterations: int,
    ) -> tuple[Tensor, ...]:
        _, n, c = instance.shape
        hidden, new = fc1.shape[0], instance.new_empty  # given sizes one by one it is as quick as torch.empty
        of_batch = second is not None
        if of_batch:
            mean, variance, inv_std_scale = new(c), new(c), new(1)
            whitening = new(*second.shape[1:])
        g = whitening.shape[-1]
        weight, diagonal, bias = new(1, c // g, g, g), new(n, c), new(n, c)
        between = new(2 * n * (c + hidden) + n + 3 * c + 2 * UNITS)
        threads = _threads(n, c, g, hidden, iterations)
        step = 5 * _bytes_of_matrix(g) + 4 * c
        _forward_kernel(
            Forward(
                0, n, c, g, hidden, iterations,
                *addresses(
                    instance, second, mean, variance, whitening, inv_std_scale, norm_weight, norm_bias, fc1, ln_weight,
                    ln_bias, fc2, mix, weight, diagonal, bias, between,
                ),
                scratch_of(threads * step), step, *numbers,
            ),
            threads,
        )  # fmt: skip
        ctx.save_for_backward(instance, second, mean, whitening, inv_std_scale, mix, between, fc1, ln_weight, fc2)
        ctx.numbers, ctx.iterations, ctx.threads = numbers, iterations, threads
        ctx.set_materialize_grads(False)
        if not of_batch:
            return weight, diagonal, bias
        ctx.mark_non_differentiable(mean, variance, whitening, inv_std_scale)
        return weight, diagonal, bias, mean, variance, whitening, inv_std_scale

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dweight: Tensor | None, ddiagonal: Tensor | None, dbias: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        instance, second, mean, whitening, inv_std_scale, mix, between, fc1, ln_weight, fc2 = ctx.saved_tensors
        _, n, c = instance.shape
        hidden, g, new = fc1.shape[0], whitening.shape[-1], instance.new_empty
        dweight = torch.zeros_like(whitening) if dweight is None else dweight.contiguous()
        ddiagonal = instance.new_zeros(n, c) if ddiagonal is None else ddiagonal.contiguous()
        dbias = instance.new_zeros(n, c) if dbias is None else dbias.contiguous()
        dinstance, dsecond = new(2, n, c), None if second is None else new(*second.shape)
        dnorm_weight, dnorm_bias, dmix = new(c), new(c), new(1)
        dfc1, dln_weight, dln_bias = new(hidden, c), new(hidden), new(hidden)
        dfc2 = new(c, hidden)
        gradients, step = 4 * (n * (2 * c + hidden) + 4 * c + 4 * UNITS), (5 + 3 * ctx.iterations) * _bytes_of_matrix(g)
        scratch = scratch_of(gradients + ctx.threads * step)
        _, eps, bessel, _ = ctx.numbers
        _backward_kernel(
            Backward(
                0, n, c, g, hidden, ctx.iterations,
                *addresses(
                    dweight, ddiagonal, dbias, instance, second, mean, whitening, inv_std_scale, fc1, ln_weight, fc2,
                    mix, between, dinstance, dsecond, dnorm_weight, dnorm_bias, dfc1, dln_weight, dln_bias, dfc2, dmix,
                ),
                scratch, scratch + gradients, step, eps, bessel,
            ),
            ctx.threads,
        )  # fmt: skip
        needed = ctx.needs_input_grad
        return (
            dinstance, dsecond, None, None, None, None, dnorm_weight if needed[6] else None,
            dnorm_bias if needed[7] else None, dfc1, dln_weight, dln_bias, dfc2, dmix, None, None,
        )  # fmt: skip


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


def _threads(n: int, c: int, g: int, hidden: int, iterations: int) -> int:
    """How many work on a layer."""
    return threads_for(c * (g * iterations + n * hidden) // 8)
