"""The arithmetic of the chain of coefficients on CPUs: rows of channels, matrices of a group, weights of the gate.

Written as vectors (:mod:`ce_mm.ops.backends.numba_vectors`), as what the passes do to maps is. All numbers are float32,
at any address; sums over samples and channels are taken in float64. A matrix of a group that lies in scratch memory has
rows of whole vectors, ``step`` bytes each, and a multiple of ROWS of them; what lies in tensors is dense.
"""
from llvmlite import ir
from numba.core import cgutils

from ce_mm.ops.backends.numba_products import ROWS, lane_sums
from ce_mm.ops.backends.numba_vectors import (
    DOUBLE,
    FLOAT,
    FLOAT_BYTES,
    INTEGER,
    LANES,
    VECTOR,
    WORD,
    Emitter,
    Value,
    Variable,
    emitted,
    pieces,
)
from ce_mm.ops.types import FAR_SQUARED

#: Rows of a weight whose products with so many samples are taken at once.
WEIGHT_ROWS, SAMPLES = LANES // 4, 4
#: Samples, and vectors of each, and rows of a weight, whose gradients are taken at once.
STRIP_SAMPLES, STRIP_VECTORS, GRADIENT_ROWS = (8 if LANES == 16 else 4), 2, 4
#: How many rows ahead a strip of a weight is fetched.
AHEAD = 16

_WORDS, _DOUBLES = ir.VectorType(WORD, LANES), ir.VectorType(DOUBLE, LANES)


class _Sum:
    """A vector of sums in float64."""

    def __init__(self, k: Emitter) -> None:
        self.value = Variable(Value(k.builder, ir.Constant(_DOUBLES, [0.0] * LANES)))

    def add(self, value: Value) -> None:
        """Add a vector of float32."""
        self.value.set(self.value.get() + _double(value))

    def vector(self) -> Value:
        """The sums as float32."""
        return _single(self.value.get())

    def total(self) -> Value:
        """Of all lanes, in float64."""
        return self.value.get().sum()


def _double(value: Value) -> Value:
    return value.convert("fpext", _DOUBLES if isinstance(value.type, ir.VectorType) else DOUBLE)


def _single(value: Value) -> Value:
    return value.convert("fptrunc", VECTOR if isinstance(value.type, ir.VectorType) else FLOAT)


def _quotient(one: Value, other: Value | float) -> Value:
    return Value(one.builder, one.builder.fdiv(one.value, one.like(other).value))


def _unfused_difference(value: Value, left: Value, right: Value) -> Value:
    """``value - left * right``, both rounded: of a map of one position E - m² is 0."""
    b = value.builder
    return Value(b, b.fsub(value.value, b.fmul(left.value, right.value)))


def _inv_root(value: Value) -> Value:
    b = value.builder
    suffix = {VECTOR: f"v{LANES}f32", DOUBLE: "f64"}[value.type]
    root = cgutils.get_or_insert_function(b.module, ir.FunctionType(value.type, [value.type]), f"llvm.sqrt.{suffix}")
    return _quotient(value.like(1.0), Value(b, b.call(root, [value.value])))


def _sigmoid(x: Value) -> Value:
    """1 / (1 + exp(-x)): exp of what is left of -x after so many times log 2."""
    y = x * -1.0
    y = y.compare("<", -87.0).where(y.like(-87.0), y)
    y = y.compare(">", 88.0).where(y.like(88.0), y)
    rounding = 1.5 * 2.0**23  # added to a number it leaves a whole one, in the last bits
    count = y * 1.4426950408889634 + rounding
    power = ((count.convert("bitcast", _WORDS) << 23) + 0x3F800000).convert("bitcast", VECTOR)
    count = count - rounding
    rest = count * -0.693359375 + y
    rest = count * 2.12194440e-4 + rest
    series = rest.like(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0):
        series = series * rest + factor
    return _quotient(y.like(1.0), series * power + 1.0)


def _get(k: Emitter, address: Value, inside: Value | None) -> Value:
    """The numbers of the lanes inside; zeros in the others."""
    if inside is None:
        return k.load(address)
    b, pointer, lanes = k.builder, VECTOR.as_pointer(), ir.VectorType(ir.IntType(1), LANES)
    kind = ir.FunctionType(VECTOR, [pointer, WORD, lanes, VECTOR])
    load = cgutils.get_or_insert_function(b.module, kind, f"llvm.masked.load.v{LANES}f32.p0")
    place = b.inttoptr(address.value, pointer)
    return Value(b, b.call(load, [place, ir.Constant(WORD, 1), inside.value, k.zeros().value]))


def _put(k: Emitter, value: Value, address: Value, inside: Value | None) -> None:
    """Store the lanes inside."""
    if inside is None:
        k.store(value, address)
        return
    b, pointer, lanes = k.builder, VECTOR.as_pointer(), ir.VectorType(ir.IntType(1), LANES)
    kind = ir.FunctionType(ir.VoidType(), [VECTOR, pointer, WORD, lanes])
    store = cgutils.get_or_insert_function(b.module, kind, f"llvm.masked.store.v{LANES}f32.p0")
    b.call(store, [value.value, b.inttoptr(address.value, pointer), ir.Constant(WORD, 1), inside.value])


def _everywhere(k: Emitter, address: Value) -> Value:
    """The number that lies there, in every lane."""
    return k.load(address, FLOAT).to_vector()


def _step(g: Value) -> Value:
    """From one row to the next of a group's matrix in scratch memory, in bytes."""
    return (g + (LANES - 1) & -LANES) * FLOAT_BYTES


def _is_diagonal(k: Emitter, row: Value, place: Value) -> Value:
    """Whether lanes, of a row's numbers from ``place`` on, are on the diagonal."""
    lane = (row - (place >> 2)).convert("trunc", WORD).to_vector()
    return k.lanes().compare("==", lane)


@emitted("iiiiii")
def batch_statistics(
    k: Emitter, instance: Value, row: Value, n: Value, count: Value, mean: Value, variance: Value
) -> None:
    """Mean and variance over the batch of ``count`` channels, from those of n samples, whose rows lie so far apart."""
    of_variances = n * row
    samples = n.convert("sitofp", DOUBLE).to_vector()

    def of_piece(place: Value, inside: Value | None) -> None:
        total, squares = _Sum(k), _Sum(k)
        with k.range(n) as i:
            total.add(_get(k, instance + i * row + place, inside))
        centre = _quotient(total.value.get(), samples)
        with k.range(n) as i:
            address = instance + i * row + place
            away = _double(_get(k, address, inside)) - centre
            squares.value.set(away * away + squares.value.get())
            squares.add(_get(k, address + of_variances, inside))
        _put(k, _single(centre), mean + place, inside)
        _put(k, _single(_quotient(squares.value.get(), samples)), variance + place, inside)

    pieces(k, count, of_piece)


@emitted("iiifiii", "ff")
def statistics_of_x(
    k: Emitter, mean: Value, variance: Value, shift: Value, correction: Value, count: Value, mean_of_x: Value,
    corrected: Value,
) -> tuple[Value, Value]:  # fmt: skip
    """From mean and variance of z of so many channels to those that move the averages of x.

    Returns:
        Their :func:`deviation_of`, and how many means lie far from 0.
    """
    deviation, far = Variable(k.zeros()), Variable(k.zeros())

    def of_piece(place: Value, inside: Value | None) -> None:
        m, v = _get(k, mean + place, inside), _get(k, variance + place, inside)
        one, other = m + _get(k, shift + place, inside), v * correction.to_vector()
        _put(k, one, mean_of_x + place, inside)
        _put(k, other, corrected + place, inside)
        deviation.set(deviation.get() + (one - one) + (other - other))
        far.set(far.get() + _is_far(m, v).where(m.like(1.0), 0.0))

    pieces(k, count, of_piece)
    return deviation.get().sum(), far.get().sum()


def _is_far(mean: Value, variance: Value) -> Value:
    return (mean * mean).compare(">", variance * FAR_SQUARED)


@emitted("iiii")
def shift_of(k: Emitter, count: Value, mean: Value, variance: Value, out: Value) -> None:
    """The means of so many channels that lie far from 0, and 0 for the others."""

    def of_piece(place: Value, inside: Value | None) -> None:
        m, v = _get(k, mean + place, inside), _get(k, variance + place, inside)
        _put(k, _is_far(m, v).where(m, 0.0), out + place, inside)

    pieces(k, count, of_piece)


@emitted("iiii")
def subtract(k: Emitter, one: Value, other: Value, count: Value, out: Value) -> None:
    """So many numbers less so many others."""
    pieces(k, count, lambda place, inside: _put(
        k, _get(k, one + place, inside) - _get(k, other + place, inside), out + place, inside
    ))  # fmt: skip


@emitted("iiiifiiii")
def norm_affine(
    k: Emitter, mean: Value, variance: Value, weight: Value, bias: Value, eps: Value, count: Value,
    inv_std: Value, scale: Value, offset: Value,
) -> None:  # fmt: skip
    """1 / sqrt(variance + eps), a and b of so many channels; weight and bias may be 0, for none."""
    eps = eps.to_vector()

    def of_piece(place: Value, inside: Value | None) -> None:
        one = _inv_root(_get(k, variance + place, inside) + eps)
        _put(k, one, inv_std + place, inside)
        a, b = Variable(one), Variable(k.zeros())
        with k.case(weight.compare("!=", 0)):
            a.set(one * _get(k, weight + place, inside))
        with k.case(bias.compare("!=", 0)):
            b.set(_get(k, bias + place, inside))
        _put(k, a.get(), scale + place, inside)
        _put(k, b.get() - a.get() * _get(k, mean + place, inside), offset + place, inside)

    pieces(k, count, of_piece)


@emitted("iiiifii", "d")
def spread(
    k: Emitter, variances: Value, row: Value, n: Value, scale: Value, bessel: Value, count: Value, out: Value
) -> Value:
    """σ̃² of n samples and so many channels, and its sum."""
    total = _Sum(k)

    def of_piece(place: Value, inside: Value | None) -> None:
        a = _get(k, scale + place, inside)
        factor = a * a * bessel.to_vector()
        with k.range(n) as i:
            value = _get(k, variances + i * row + place, inside) * factor
            total.add(value)
            _put(k, value, out + i * row + place, inside)

    pieces(k, count, of_piece)
    return total.total()


@emitted("iiiifiii", "f")
def normalised_covariance(
    k: Emitter, second: Value, mean: Value, scale: Value, g: Value, eps: Value,
    of_z: Value, sigma: Value, root: Value,
) -> Value:  # fmt: skip
    """Covariance of z, Σ with its trace divided out, and P_1 of a group; returns the trace."""
    trace, step = _Sum(k), _step(g)

    def of_piece(place: Value, inside: Value | None) -> None:
        m, a = _get(k, mean + place, inside), _get(k, scale + place, inside)
        with k.range(g) as i:
            row = i * step + place
            z = _get(k, second + i * g * FLOAT_BYTES + place, inside)
            z = _unfused_difference(z, _everywhere(k, mean + i * FLOAT_BYTES), m)
            k.store(z, of_z + row)
            on_diagonal = _is_diagonal(k, i, place)
            value = z * (_everywhere(k, scale + i * FLOAT_BYTES) * a)
            value = on_diagonal.where(value + eps.to_vector(), value)
            trace.add(on_diagonal.where(value, 0.0))
            k.store(value, sigma + row)

    pieces(k, g, of_piece)
    whole = _single(trace.total())
    factor = _quotient(whole.like(1.0), whole).to_vector()
    with k.range(g) as i, k.range(step, LANES * FLOAT_BYTES) as place:
        value = k.load(sigma + i * step + place) * factor
        k.store(value, sigma + i * step + place)
        start = _is_diagonal(k, i, place).where(k.zeros().like(1.5), 0.0) - value * 0.5
        k.store(start, root + i * step + place)
    return whole


@emitted("iiiiffi")
def multiply(
    k: Emitter, left: Value, right: Value, g: Value, start: Value, of_start: Value, factor: Value,
    out: Value,
) -> None:  # fmt: skip
    """``out = of_start * start + factor * left @ right`` of matrices in scratch memory; start may be 0, or out."""
    step = _step(g)
    with k.range(g, ROWS) as i, k.range(step, LANES * FLOAT_BYTES) as place:
        sums = [Variable(k.zeros()) for _ in range(ROWS)]
        with k.range(g) as j:
            values = k.load(right + j * step + place)
            for r, total in enumerate(sums):
                total.set(_everywhere(k, left + (i + r) * step + j * FLOAT_BYTES) * values + total.get())
        for total in sums:
            total.set(total.get() * factor.to_vector())
        with k.case(start.compare("!=", 0)):
            for r, total in enumerate(sums):
                total.set(k.load(start + (i + r) * step + place) * of_start.to_vector() + total.get())
        for r, total in enumerate(sums):
            k.store(total.get(), out + (i + r) * step + place)


@emitted("iii")
def store_dense(k: Emitter, matrix: Value, g: Value, out: Value) -> None:
    """A matrix of scratch memory to a tensor."""
    step = _step(g)
    with k.range(g) as i:
        source, row = matrix + i * step, out + i * g * FLOAT_BYTES
        pieces(k, g, lambda place, inside: _put(k, k.load(source + place), row + place, inside))


@emitted("iiiiiiii")
def weigh_samples(
    k: Emitter, weight: Value, size: Value, first: Value, end: Value, samples: Value, n: Value, out: Value,
    out_step: Value,
) -> None:  # fmt: skip
    """``out[s, r] = weight[r] · samples[s]``, rows of so many numbers, for the rows from first on to the end."""
    with k.range(end - first, WEIGHT_ROWS) as i, k.range(n, SAMPLES) as start:
        # What would lie behind the last row or sample is these, once more.
        row = [(first + i + r).minimum(end - 1) for r in range(WEIGHT_ROWS)]
        sample = [(start + s).minimum(n - 1) for s in range(SAMPLES)]
        sums = {(r, s): Variable(k.zeros()) for s in range(SAMPLES) for r in range(WEIGHT_ROWS)}

        def add(place: Value, inside: Value | None) -> None:
            values = [_get(k, samples + number * size * FLOAT_BYTES + place, inside) for number in sample]
            for r in range(WEIGHT_ROWS):
                factor = _get(k, weight + row[r] * size * FLOAT_BYTES + place, inside)
                for s in range(SAMPLES):
                    sums[r, s].set(factor * values[s] + sums[r, s].get())

        pieces(k, size, add)
        totals = lane_sums(k, [total.get() for total in sums.values()])
        for lane, (r, s) in enumerate(sums):
            one = Value(k.builder, k.builder.extract_element(totals.value, ir.Constant(WORD, lane)))
            k.store(one, out + sample[s] * out_step + row[r] * FLOAT_BYTES)


@emitted("iiiiiii")
def weigh_samples_backward(
    k: Emitter, weight: Value, row: Value, rows: Value, count: Value, dout: Value, n: Value, dsamples: Value
) -> None:
    """To the samples, whose rows, as the weight's, are ``row`` bytes, for so many columns."""

    def of_strip(vectors: int, place: Value, inside: Value | None) -> None:
        places = [place + LANES * FLOAT_BYTES * v for v in range(vectors)]
        with k.range(n, STRIP_SAMPLES) as start:
            sample = [(start + s).minimum(n - 1) for s in range(STRIP_SAMPLES)]  # the last one again, if there is none
            sums = [[Variable(k.zeros()) for _ in places] for _ in sample]
            gradient = [dout + number * rows * FLOAT_BYTES for number in sample]
            with k.range(rows) as i:
                here = weight + i * row
                k.prefetch(here + row * AHEAD + place)
                factors = [_get(k, here + each, inside) for each in places]
                for totals, of_sample in zip(sums, gradient, strict=True):
                    d = _everywhere(k, of_sample + i * FLOAT_BYTES)
                    for total, factor in zip(totals, factors, strict=True):
                        total.set(d * factor + total.get())
            for totals, number in zip(sums, sample, strict=True):
                for total, each in zip(totals, places, strict=True):
                    _put(k, total.get(), dsamples + number * row + each, inside)

    wide = STRIP_VECTORS * LANES
    rest = count & (wide - 1)
    with k.range(count - rest, wide) as i:
        of_strip(STRIP_VECTORS, i * FLOAT_BYTES, None)
    pieces(k, rest, lambda place, inside: of_strip(1, (count - rest) * FLOAT_BYTES + place, inside))


@emitted("iiiiiiii")
def weight_gradient(
    k: Emitter, dout: Value, rows: Value, first: Value, end: Value, samples: Value, n: Value, size: Value,
    dweight: Value,
) -> None:  # fmt: skip
    """The gradient of a weight's rows, of so many numbers, from the first on to the end; of the output's (N, rows)."""

    def of_rows(vectors: int, i: Value, place: Value, inside: Value | None) -> None:
        places = [place + LANES * FLOAT_BYTES * v for v in range(vectors)]
        row = [(first + i + r).minimum(end - 1) for r in range(GRADIENT_ROWS)]
        sums = [[Variable(k.zeros()) for _ in places] for _ in row]
        with k.range(n) as s:
            values = [_get(k, samples + s * size * FLOAT_BYTES + each, inside) for each in places]
            for totals, number in zip(sums, row, strict=True):
                d = _everywhere(k, dout + (s * rows + number) * FLOAT_BYTES)
                for total, value in zip(totals, values, strict=True):
                    total.set(d * value + total.get())
        for totals, number in zip(sums, row, strict=True):
            for total, each in zip(totals, places, strict=True):
                _put(k, total.get(), dweight + number * size * FLOAT_BYTES + each, inside)

    wide = STRIP_VECTORS * LANES
    rest = size & (wide - 1)
    with k.range(end - first, GRADIENT_ROWS) as i:
        with k.range(size - rest, wide) as j:
            of_rows(STRIP_VECTORS, i, j * FLOAT_BYTES, None)
        pieces(k, rest, lambda place, inside: of_rows(1, i, (size - rest) * FLOAT_BYTES + place, inside))


@emitted("iidiii", "f")
def layer_norm(k: Emitter, hidden: Value, count: Value, eps: Value, weight: Value, bias: Value, active: Value) -> Value:
    """LayerNorm of one sample, in place without its parameters, and what is behind the ReLU; returns 1 / spread."""
    total, squares, size = _Sum(k), _Sum(k), count.convert("sitofp", DOUBLE)
    pieces(k, count, lambda place, inside: total.add(_get(k, hidden + place, inside)))
    mean = _quotient(total.total(), size).to_vector()

    def add_square(place: Value, inside: Value | None) -> None:
        away = _double(_get(k, hidden + place, inside)) - mean
        away = away if inside is None else inside.where(away, 0.0)
        squares.value.set(away * away + squares.value.get())

    pieces(k, count, add_square)
    inv_std = _single(_inv_root(_quotient(squares.total(), size) + eps))

    def of_piece(place: Value, inside: Value | None) -> None:
        normed = _single(_double(_get(k, hidden + place, inside)) - mean) * inv_std.to_vector()
        _put(k, normed, hidden + place, inside)
        value = normed * _get(k, weight + place, inside) + _get(k, bias + place, inside)
        _put(k, value.compare("<=", 0.0).where(k.zeros(), value), active + place, inside)

    pieces(k, count, of_piece)
    return inv_std


@emitted("iiiiiiii")
def rectifier_backward(
    k: Emitter, dactive: Value, active: Value, normed: Value, row: Value, n: Value, count: Value,
    dweight: Value, dbias: Value,
) -> None:  # fmt: skip
    """Through the ReLU, in place, and to LayerNorm's weight and bias, for so many columns."""

    def of_strip(place: Value, inside: Value | None) -> None:
        of_weight, of_bias = _Sum(k), _Sum(k)
        with k.range(n) as i:
            here = i * row + place
            d = _get(k, dactive + here, inside)
            d = _get(k, active + here, inside).compare("<=", 0.0).where(k.zeros(), d)
            _put(k, d, dactive + here, inside)
            of_weight.add(d * _get(k, normed + here, inside))
            of_bias.add(d)
        _put(k, of_weight.vector(), dweight + place, inside)
        _put(k, of_bias.vector(), dbias + place, inside)

    pieces(k, count, of_strip)


@emitted("iiifi")
def layer_norm_backward(
    k: Emitter, gradient: Value, normed: Value, weight: Value, inv_std: Value, count: Value
) -> None:
    """Through LayerNorm of one sample, in place."""
    total, inner = _Sum(k), _Sum(k)

    def add(place: Value, inside: Value | None) -> None:
        d = _get(k, gradient + place, inside) * _get(k, weight + place, inside)
        total.add(d)
        inner.add(d * _get(k, normed + place, inside))

    pieces(k, count, add)
    size = count.convert("sitofp", DOUBLE)
    mean, slope = (_single(_quotient(each.total(), size)).to_vector() for each in (total, inner))

    def of_piece(place: Value, inside: Value | None) -> None:
        d = _get(k, gradient + place, inside) * _get(k, weight + place, inside) - mean
        d = d - _get(k, normed + place, inside) * slope
        _put(k, d * inv_std.to_vector(), gradient + place, inside)

    pieces(k, count, of_piece)


@emitted("ifiiiii")
def combine_matrices(
    k: Emitter, whitening: Value, ratio: Value, scale: Value, offset: Value, g: Value, weight: Value, common: Value
) -> None:
    """W of a group, and the part of t that its samples share."""
    with k.range(g) as i:
        total = Variable(k.zeros())
        row = i * g * FLOAT_BYTES

        def of_piece(place: Value, inside: Value | None) -> None:
            shared = _get(k, whitening + row + place, inside) * ratio.to_vector()
            _put(k, shared * _get(k, scale + place, inside), weight + row + place, inside)
            total.set(shared * _get(k, offset + place, inside) + total.get())

        pieces(k, g, of_piece)
        k.store(total.get().sum(), common + i * FLOAT_BYTES)


@emitted("ifiiiiiiii")
def combine_samples(
    k: Emitter, gate: Value, rest: Value, scale: Value, offset: Value, common: Value, row: Value, n: Value,
    count: Value, diagonal: Value, bias: Value,
) -> None:  # fmt: skip
    """The sigmoid of the gate, in place, e and t of so many channels; ``rest`` is (1-λ) s^(-1/2)."""

    def of_piece(place: Value, inside: Value | None) -> None:
        a, b, shared = (_get(k, vector + place, inside) for vector in (scale, offset, common))
        with k.range(n) as i:
            here = i * row + place
            value = _sigmoid(_get(k, gate + here, inside))
            _put(k, value, gate + here, inside)
            own = value * rest.to_vector()
            _put(k, own * a, diagonal + here, inside)
            _put(k, own * b + shared, bias + here, inside)

    pieces(k, count, of_piece)


@emitted("iiifiiiiiiii", "d")
def combine_samples_backward(
    k: Emitter, ddiagonal: Value, dbias: Value, gate: Value, rest: Value, scale: Value, offset: Value, row: Value,
    n: Value, count: Value, dlogit: Value, sums: Value, sums_step: Value,
) -> Value:  # fmt: skip
    """Through :func:`combine_samples`. Four rows of sums get the gradients of scale, offset and common, and zeros.

    Returns:
        That of ``rest``.
    """
    of_rest = _Sum(k)

    def of_piece(place: Value, inside: Value | None) -> None:
        a, b = (_get(k, vector + place, inside) for vector in (scale, offset))
        da, db, dcommon = (_Sum(k) for _ in range(3))
        with k.range(n) as i:
            here = i * row + place
            of_diagonal, of_bias, value = (_get(k, each + here, inside) for each in (ddiagonal, dbias, gate))
            own = value * rest.to_vector()
            along = (of_diagonal * a + of_bias * b) * value
            _put(k, along * rest.to_vector() * (value * -1.0 + 1.0), dlogit + here, inside)
            da.add(of_diagonal * own)
            db.add(of_bias * own)
            dcommon.add(of_bias)
            of_rest.add(along)
        for number, total in enumerate((da, db, dcommon)):
            _put(k, total.vector(), sums + sums_step * number + place, inside)
        _put(k, k.zeros(), sums + sums_step * 3 + place, inside)

    pieces(k, count, of_piece)
    return of_rest.total()


@emitted("iifiiiiii", "d")
def combine_matrices_backward(
    k: Emitter, dweight: Value, whitening: Value, ratio: Value, scale: Value, offset: Value, g: Value, sums: Value,
    sums_step: Value, dwhitening: Value,
) -> Value:  # fmt: skip
    """Through :func:`combine_matrices`, to a matrix in scratch memory, and, added, to the rows of sums.

    Returns:
        The gradient of the ratio.
    """
    of_ratio, step = _Sum(k), _step(g)

    def of_piece(place: Value, inside: Value | None) -> None:
        a, b = (_get(k, vector + place, inside) for vector in (scale, offset))
        da, db = (Variable(_get(k, sums + sums_step * number + place, inside)) for number in range(2))
        with k.range(g) as i:
            here = i * g * FLOAT_BYTES + place
            of_weight, root = _get(k, dweight + here, inside), _get(k, whitening + here, inside)
            of_row = _everywhere(k, sums + sums_step * 2 + i * FLOAT_BYTES)
            dshared = of_weight * a + of_row * b
            k.store(dshared * ratio.to_vector(), dwhitening + i * step + place)
            of_ratio.add(dshared * root)
            shared = root * ratio.to_vector()
            da.set(of_weight * shared + da.get())
            db.set(of_row * shared + db.get())
        for number, total in enumerate((da, db)):
            _put(k, total.get(), sums + sums_step * number + place, inside)

    pieces(k, g, of_piece)
    return of_ratio.total()


@emitted("iiifiiiiii")
def covariance_backward(
    k: Emitter, gradient: Value, sigma: Value, of_z: Value, trace: Value, mean: Value, scale: Value, g: Value,
    dsecond: Value, sums: Value, sums_step: Value,
) -> None:  # fmt: skip
    """Through :func:`normalised_covariance`, from -2 times the gradient of Σ; scale's and mean's are added to sums."""
    along, step = _Sum(k), _step(g)
    with k.range(g) as i, k.range(step, LANES * FLOAT_BYTES) as place:
        along.add(k.load(gradient + i * step + place) * k.load(sigma + i * step + place))
    mean_along = _single(along.total()).to_vector()
    factor = _quotient(trace.like(-0.5), trace).to_vector()
    da, dmean = sums, sums + sums_step * 3

    def of_piece(place: Value, inside: Value | None) -> None:
        a, m = _get(k, scale + place, inside), _get(k, mean + place, inside)
        of_scale, of_mean = Variable(k.zeros()), Variable(k.zeros())
        with k.range(g) as i:
            row, number = i * step + place, i * FLOAT_BYTES
            of_sigma = k.load(gradient + row)
            of_sigma = _is_diagonal(k, i, place).where(of_sigma - mean_along, of_sigma) * factor
            if inside is not None:
                of_sigma = inside.where(of_sigma, 0.0)
            one_a, one_m = _everywhere(k, scale + number), _everywhere(k, mean + number)
            of_second = of_sigma * (one_a * a)
            _put(k, of_second, dsecond + i * g * FLOAT_BYTES + place, inside)
            of_outer = of_sigma * k.load(of_z + row)
            # What a row gives goes to one channel, what a column gives to another.
            for target, of_row in ((da, of_outer * a), (dmean, of_second * m * -1.0)):
                k.store(k.load(target + number, FLOAT) + of_row.sum(), target + number)
            of_scale.set(of_outer * one_a + of_scale.get())
            of_mean.set(of_second * one_m + of_mean.get())
        _put(k, _get(k, da + place, inside) + of_scale.get(), da + place, inside)
        _put(k, _get(k, dmean + place, inside) - of_mean.get(), dmean + place, inside)

    pieces(k, g, of_piece)


@emitted("iiiiiiiiffffiiiiii")
def norm_backward(
    k: Emitter, instance: Value, dspread: Value, row: Value, n: Value, count: Value, mean: Value, scale: Value,
    inv_std: Value, bessel: Value, common: Value, share: Value, of_position: Value, sums: Value, sums_step: Value,
    dweight: Value, dbias: Value, slopes: Value, offset: Value,
) -> None:  # fmt: skip
    """Through σ̃², and the norm, to γ, β and x at its ``1 / of_position`` positions, of so many channels.

    ``common`` is added to the gradients of σ̃². ``share`` is 1 / n; or 0 where mean and variance are not the batch's.
    """
    of_variances, common, bessel, of_position = n * row, *(k.to_vector() for k in (common, bessel, of_position))

    def of_piece(place: Value, inside: Value | None) -> None:
        a, centre, one = (_get(k, vector + place, inside) for vector in (scale, mean, inv_std))
        da, db, _, of_mean = (_get(k, sums + sums_step * number + place, inside) for number in range(4))
        of_factor = _Sum(k)
        with k.range(n) as i:
            here = i * row + place
            of_factor.add((_get(k, dspread + here, inside) + common) * _get(k, instance + of_variances + here, inside))
        da = of_factor.vector() * (a * bessel * 2.0) + da
        of_weight = (da - db * centre) * one
        _put(k, of_weight, dweight + place, inside)
        _put(k, db, dbias + place, inside)
        dvariance, dmean = Variable(k.zeros()), Variable(k.zeros())
        with k.case(share.compare("!=", 0.0)):
            dvariance.set(of_weight * a * one * (share * -1.0).to_vector())
            dmean.set((of_mean - db * a) * share.to_vector())
        with k.range(n) as i:
            here = i * row + place
            of_spread = (_get(k, dspread + here, inside) + common) * (a * a * bessel) * 2.0
            slope = of_spread + dvariance.get()
            away = _get(k, instance + here, inside) * of_spread + centre * dvariance.get()
            _put(k, slope * of_position, slopes + here, inside)
            _put(k, (dmean.get() - away) * of_position, offset + here, inside)

    pieces(k, count, of_piece)


@emitted("iii")
def add_matrix(k: Emitter, one: Value, g: Value, out: Value) -> None:
    """Add a matrix of scratch memory to another."""
    with k.range(g * _step(g), LANES * FLOAT_BYTES) as place:
        k.store(k.load(out + place) + k.load(one + place), out + place)


@emitted("ii", "f")
def deviation_of(k: Emitter, values: Value, count: Value) -> Value:
    """0 if so many numbers are all finite, else a NaN."""
    total = Variable(k.zeros())

    def add(place: Value, inside: Value | None) -> None:
        value = _get(k, values + place, inside)
        total.set(total.get() + (value - value))

    pieces(k, count, add)
    return total.get().sum()


@emitted("iiif")
def move(k: Emitter, average: Value, values: Value, count: Value, momentum: Value) -> None:
    """Move so many averages towards their values, from the nearer of both, as torch.lerp does."""
    is_small = momentum.compare("<", 0.5)
    factor = is_small.where(momentum, momentum - 1.0).to_vector()

    def of_piece(place: Value, inside: Value | None) -> None:
        old, new = _get(k, average + place, inside), _get(k, values + place, inside)
        _put(k, (new - old) * factor + is_small.where(old, new), average + place, inside)

    pieces(k, count, of_piece)


@emitted("i", "i")
def get_whole(k: Emitter, address: Value) -> Value:
    """The whole number that lies there."""
    return k.load(address, INTEGER)


@emitted("ii")
def put_flag(k: Emitter, address: Value, flag: Value) -> None:
    """Put a bool there."""
    k.store(flag.convert("trunc", ir.IntType(8)), address)
