"""The backend of NVIDIA's GPUs: the four passes over a map as Triton kernels.

Both backward and forward have a pass that sums (:func:`moments` is :func:`output_sums` with z in the gradient's place,
so they share a kernel) and a pass that maps. A program works on tiles (:mod:`ce_mm.ops.backends.triton_tiles`) of
channels × positions, read in place in either memory format; what a product has off the blocks of its matrices is never
stored. So a value that is not finite may spread to the other groups of its tile.

Where sums are taken, the samples and positions are shared out among enough programs to fill the GPU, each writes its
part to a workspace, and torch adds the parts up: no atomics, so the same call gives the same bits in the same
configuration. The first call of a new kind of shape tries a few and waits for the GPU
(:mod:`ce_mm.ops.backends.triton_tuning`); to capture a CUDA graph, run the layer once before.

Maps are float32, float16 or bfloat16, all else float32, and sums are taken in float32. Products of float32 maps are
float32 throughout ("ieee"). For the half types z and W are rounded to the nearest of tf32's numbers, of which a map's
own values are some, and only the products' sums are float32: that rounding, 2^-11, lies below the 2^-9 of bfloat16 and
at the output's own rounding in float16. float64 has no kernels here.
"""
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ce_mm.ops.backends.plain import contiguous, in_format_of
from ce_mm.ops.backends.triton_coefficients import (
    COEFFICIENTS_GROUP,
    coefficients,
    coefficients_backward,
    move_averages,
)
from ce_mm.ops.backends.triton_tiles import block_offsets, rows_of, tile_channels, tiles_of
from ce_mm.ops.backends.triton_tuning import Tuned, size_class

__all__ = [
    "ASKS",
    "COEFFICIENTS_GROUP",
    "OVERWRITES",
    "coefficients",
    "coefficients_backward",
    "group_affine",
    "input_gradient",
    "moments",
    "move_averages",
    "output_sums",
]

ASKS: frozenset[str] = frozenset()
OVERWRITES: frozenset[str] = frozenset()

_WIDE = (2048, 4), (2048, 8), (4096, 4), (8192, 8)
_EXACT_SUMS = (1024, 4), (2048, 8), (1024, 8)
#: Elements of a tile and warps that the passes which map may have, by a product's precision and rows. A product of 64
#: rows by four warps or more would be Hopper's wgmma, which Triton has got wrong where several products and a
#: transposition meet. What would need much stack beside registers is left out: 8 KB a thread are 2 GB on an H100.
MAPS = {
    ("tf32", 16): _WIDE, ("tf32", 32): _WIDE, ("tf32", 64): ((1024, 2),),
    ("ieee", 16): _WIDE, ("ieee", 32): _WIDE, ("ieee", 64): ((2048, 8), (1024, 4)),
}  # fmt: skip
#: Likewise of the pass that sums: of a tf32 product of 16 rows by 16, more than two warps would repeat each other's.
SUMS = {
    ("tf32", 16): ((1024, 2), (512, 2), (512, 1)), ("tf32", 32): ((1024, 2), (512, 2), (1024, 4)),
    ("tf32", 64): ((1024, 2),),
    ("ieee", 16): _EXACT_SUMS, ("ieee", 32): _EXACT_SUMS, ("ieee", 64): _EXACT_SUMS,
}  # fmt: skip
#: Programs for each multiprocessor that a pass of sums is shared out to, about.
PROGRAMS = 16
#: Positions below which a share would cost more than it gains.
SMALLEST_SHARE = 128


def moments(x: Tensor, shift: Tensor, group_size: int, products: bool, per_sample: bool) -> tuple[Tensor, ...]:
    """Mean and variance of z, and, if asked, the mean of z zᵀ inside each group; see :func:`ce_mm.ops.moments`.

    The variance is taken about a value of each sample's own, or it would cancel where that lies far from the shift.
    """
    means, second = _sums(x, shift, None, None, None, None, group_size, products, per_sample)
    _, square, own_mean = means
    square.addcmul_(own_mean, own_mean, value=-1)
    return means[:2], second


def group_affine(
    x: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    diagonal: Tensor | None,
    bias: Tensor,
    residual: Tensor | None,
    rectifier: float | None,
) -> Tensor:
    """The affine map, residual add and rectifier; see :func:`ce_mm.ops.group_affine`."""
    group_size = 1 if weight is None else weight.shape[-1]
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _affine_kernel[_one_program_per_tile(x, group_size)](
            x, shift.contiguous(), contiguous(weight), contiguous(diagonal), bias.contiguous(),
            None if residual is None else in_format_of(x, residual), y, _ceiling(rectifier),
            **_shape_arguments(x, group_size), shift_stride=_sample_stride(_of_samples(shift, x)),
            weight_stride=_sample_stride(weight), bias_stride=_sample_stride(bias), RELU=rectifier is not None,
        )  # fmt: skip
    return y


def output_sums(
    dy: Tensor,
    x: Tensor,
    shift: Tensor,
    rectified: Tensor | None,
    rectifier: float | None,
    keep: bool,
    group_size: int,
    products: bool,
    per_sample: bool,
) -> tuple[Tensor, ...]:
    """First pass of the backward: the gradient before the rectifier, and its sums; see :mod:`ce_mm.ops.joint`."""
    dy = in_format_of(x, dy)
    rectified = None if rectified is None else in_format_of(x, rectified)
    gradient = torch.empty_like(dy) if keep else None
    sums = _sums(x, shift, dy, rectified, _ceiling(rectifier), gradient, group_size, products, per_sample)
    return dy.new_empty(0) if gradient is None else gradient, *sums


def input_gradient(
    gradient: Tensor | None,
    rectified: Tensor | None,
    x: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    diagonal: Tensor | None,
    slope: Tensor | None,
    slopes: Tensor | None,
    offset: Tensor | None,
) -> Tensor:
    """Second pass of the backward: dx; see :mod:`ce_mm.ops.joint`."""
    dx = torch.empty_like(x)
    group_size = next((matrix.shape[-1] for matrix in (weight, slope) if matrix is not None), 1)
    with torch.cuda.device_of(x):
        _input_gradient_kernel[_one_program_per_tile(x, group_size)](
            None if gradient is None else in_format_of(x, gradient),
            None if rectified is None else in_format_of(x, rectified),
            x, shift.contiguous(), *map(contiguous, (weight, diagonal, slope, slopes, offset)), dx,
            **_shape_arguments(x, group_size), shift_stride=_sample_stride(_of_samples(shift, x)),
            weight_stride=_sample_stride(weight), slope_stride=_sample_stride(slope),
        )  # fmt: skip
    return dx


def _sums(
    x: Tensor,
    shift: Tensor,
    dy: Tensor | None,
    rectified: Tensor | None,
    ceiling: float | None,
    gradient: Tensor | None,
    group_size: int,
    products: bool,
    per_sample: bool,
) -> tuple[Tensor, Tensor]:
    """Sums over positions of dy and dy ⊙ z, (2, N, C), and of dy zᵀ; writes ``gradient``.

    Without dy, means of z, u² and u, (3, N, C), where u is x less one of its values, and of z zᵀ, over the samples too
    unless ``per_sample``.
    """
    n, c, h, w = x.shape
    tiles = tiles_of(c, group_size)
    samples, splits = _shares(x, tiles, per_sample)
    chunks = triton.cdiv(n, samples)
    means = dy is None
    sums = shift.new_empty(3 if means else 2, splits, n, c)
    product = shift.new_empty(chunks, splits, c // group_size, group_size, group_size) if products else None
    with torch.cuda.device_of(x):
        _sums_kernel[(tiles * chunks * splits,)](
            x, shift.contiguous(), dy, rectified, ceiling, gradient, sums, product,
            **_shape_arguments(x, group_size), N=n, shift_stride=_sample_stride(_of_samples(shift, x)),
            samples=samples, splits=splits, of_sums=1.0 / (h * w) if means else 1.0,
            of_products=1.0 / (h * w * (1 if per_sample else n)) if means else 1.0,
        )  # fmt: skip
    if product is None:
        product = shift.new_empty(0)
    else:
        product = _sum(product, 1) if per_sample else _sum(product.flatten(0, 1), 0)[None]
    return _sum(sums, 1), product


def _sum(parts: Tensor, dim: int) -> Tensor:
    """Their sum, without a launch where there is but one."""
    return parts.squeeze(dim) if parts.shape[dim] == 1 else parts.sum(dim)


def _shares(x: Tensor, tiles: int, per_sample: bool) -> tuple[int, int]:
    """How many samples a program of the sums takes, and how many programs share the positions of one sample.

    Matrices for each sample and share would outweigh small maps, so a program takes many samples where that still
    leaves enough programs.
    """
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    n, positions = x.shape[0], x.shape[2] * x.shape[3]
    wanted = max(PROGRAMS * processors // tiles, 1)
    samples = 1 if per_sample else triton.cdiv(n, wanted)
    return samples, min(max(wanted // n, 1), triton.cdiv(positions, SMALLEST_SHARE))


def _one_program_per_tile(x: Tensor, group_size: int) -> Callable[[dict[str, int]], tuple[int]]:
    n, c, h, w = x.shape
    tiles, rows = tiles_of(c, group_size), rows_of(group_size)
    return lambda chosen: (tiles * triton.cdiv(h * w, chosen["TILE"] // rows) * n,)


def _shape_arguments(x: Tensor, group_size: int) -> dict[str, object]:
    """The arguments that tell every kernel the shape, layout and type of x."""
    n, c, h, w = x.shape
    last = not x.is_contiguous()
    return {
        "C": c,
        "P": h * w,
        "size": size_class(h * w),
        "G": group_size,
        "ROWS": rows_of(group_size),
        "LAST": last,
        "ALIGN": math.gcd(c if last else h * w, 16),
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
    }


def _ceiling(rectifier: float | None) -> float | None:
    """What the kernels take for the ceiling of a rectifier: None for a ReLU's, which is one kernel less to compile."""
    return None if rectifier == math.inf else rectifier


def _of_samples(shift: Tensor, x: Tensor) -> Tensor:
    """(1 or N, C), of a shift that is the same for all samples or not."""
    return shift.view(-1, x.shape[1])


def _sample_stride(values: Tensor | None) -> int:
    """The step from one sample's coefficients to the next's: 0 where all samples share them."""
    return 0 if values is None or values.shape[0] == 1 else values[0].numel()


def _tuned(configurations: Mapping[tuple[str, int], Sequence[tuple[int, int]]]) -> Callable[[Callable], Tuned]:
    """A kernel of these configurations (:class:`~ce_mm.ops.backends.triton_tuning.Tuned`).

    No argument's value is compiled in, or a new batch size would mean a new compilation; what vector loads need to
    know, ALIGN says.
    """
    numbers = ["N", "C", "P", "size", "samples", "splits", "shift_stride", "weight_stride", "bias_stride"]
    numbers += ["slope_stride"]
    return lambda kernel: Tuned(triton.jit(kernel, do_not_specialize=numbers), configurations)


@triton.jit
def _aligned(C, P, LAST: tl.constexpr, ALIGN: tl.constexpr):
    """C and P, the length of a row of memory in a form that tells the compiler what divides it, for vector loads."""
    if LAST:
        C = C // ALIGN * ALIGN
    else:
        P = P // ALIGN * ALIGN
    return C, P


@triton.jit
def _offsets(sample, channel, column, C, P, LAST: tl.constexpr):
    """Where the tile of these rows and columns lies in a map; 64 bits wide, as ``sample`` is."""
    if LAST:
        return ((sample * P + column) * C)[None, :] + channel[:, None]
    else:
        return ((sample * C + channel) * P)[:, None] + column[None, :]


@triton.jit
def _tile_of_program(C, P, G: tl.constexpr, ROWS: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr):
    """The one tile of a map that the program computes: sample, channels, offsets, and what of them exists.

    Programs in a row take the channels of the same positions: with channels last, neighbours in memory.
    """
    tiles, blocks = tl.cdiv(C, ROWS // G * G), tl.cdiv(P, BLOCK)
    tile, block = tl.program_id(0) % tiles, tl.program_id(0) // tiles % blocks
    sample = (tl.program_id(0) // tiles // blocks).to(tl.int64)
    channel, present = tile_channels(tile, C, G, ROWS)
    column = block * BLOCK + tl.arange(0, BLOCK)
    offset = _offsets(sample, channel, column, C, P, LAST)
    return sample, channel, present, offset, present[:, None] & (column < P)[None, :]


@triton.jit
def _rounded(values, PRECISION: tl.constexpr):
    """What a product takes for these values: for tf32 its nearest number, where the units would cut 13 bits off.

    A sum with 2^13 times the value has no room for these bits, and the difference leaves the value without them.
    """
    if PRECISION == "tf32":
        values = tl.fma(values, -8192.0, values * 8193.0)
    return values


@triton.jit
def _mapped(values, matrix, diagonal, EXACT: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr):
    """(matrix + Diag(diagonal)) @ values, where either may be None; EXACT: values need no rounding for a product."""
    if matrix is None:
        return diagonal[:, None] * values
    else:
        if diagonal is not None:
            row = tl.arange(0, ROWS)
            matrix += tl.where(row[:, None] == row[None, :], diagonal[:, None], 0.0)
        if not EXACT:
            values = _rounded(values, PRECISION)
        return tl.dot(_rounded(matrix, PRECISION), values, input_precision=PRECISION)


@_tuned(SUMS)
def _sums_kernel(
    x, shift, dy, rectified, ceiling, gradient, sums, product,
    N, C, P, size, shift_stride, samples, splits, of_sums, of_products,
    G: tl.constexpr, ROWS: tl.constexpr, LAST: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """One share of the samples and positions of one tile of channels, each result times its factor; see _sums."""
    BLOCK: tl.constexpr = TILE // ROWS
    C, P = _aligned(C, P, LAST, ALIGN)
    tiles = tl.cdiv(C, ROWS // G * G)
    tile, part = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    chunk, split = part // splits, part % splits
    channel, present = tile_channels(tile, C, G, ROWS)
    share = tl.cdiv(P, splits * BLOCK) * BLOCK
    products = tl.full((ROWS, ROWS), 0.0, tl.float32)
    for n in range(chunk * samples, tl.minimum(chunk * samples + samples, N)):
        middle = tl.load(shift + n * shift_stride + channel, mask=present, other=0.0)
        if dy is None:
            place = tl.reshape(_offsets(tl.cast(n, tl.int64), channel, P // 2 + tl.arange(0, 1), C, P, LAST), [ROWS])
            own = tl.load(x + place, mask=present, other=0.0).to(tl.float32)
        # Summed over blocks first and along the rows once at the end: the latter crosses threads.
        totals = tl.full((ROWS, BLOCK), 0.0, tl.float32)
        inners = tl.full((ROWS, BLOCK), 0.0, tl.float32)
        for start in range(split * share, tl.minimum(split * share + share, P), BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = present[:, None] & (column < P)[None, :]
            offset = _offsets(tl.cast(n, tl.int64), channel, column, C, P, LAST)
            values = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
            z = tl.where(inside, values - middle[:, None], 0.0)
            if dy is None:
                left = z
                apart = tl.where(inside, values - own[:, None], 0.0)
                totals += apart
                inners += apart * apart
            else:
                left = tl.load(dy + offset, mask=inside, other=0.0).to(tl.float32)
                if rectified is not None:
                    y = tl.load(rectified + offset, mask=inside, other=0.0).to(tl.float32)
                    left = tl.where(y <= 0.0, 0.0, left)  # a NaN lets the gradient through, as in PyTorch
                    if ceiling is not None:
                        left = tl.where(y >= ceiling, 0.0, left)
                if gradient is not None:
                    tl.store(gradient + offset, left, mask=inside)
                totals += left
                inners += left * z
            if product is not None:
                right = _rounded(z, PRECISION)
                left = right if dy is None else left
                products = tl.dot(left, tl.trans(right), products, input_precision=PRECISION)
        total, inner = tl.sum(totals, 1) * of_sums, tl.sum(inners, 1) * of_sums
        place = sums + (tl.cast(split, tl.int64) * N + n) * C + channel
        step = tl.cast(splits, tl.int64) * N * C
        tl.store(place + step, inner, mask=present)
        if dy is None:
            tl.store(place + 2 * step, total, mask=present)
            total += tl.where(split == 0, own - middle, 0.0)
        tl.store(place, total, mask=present)
    if product is not None:
        place, stored = block_offsets(channel, present, G, ROWS)
        tl.store(product + tl.cast(part, tl.int64) * C * G + place, products * of_products, mask=stored)


@_tuned(MAPS)
def _affine_kernel(
    x, shift, weight, diagonal, bias, residual, y, ceiling,
    C, P, size, shift_stride, weight_stride, bias_stride,
    G: tl.constexpr, ROWS: tl.constexpr, LAST: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    RELU: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of y."""
    C, P = _aligned(C, P, LAST, ALIGN)
    sample, channel, present, offset, inside = _tile_of_program(C, P, G, ROWS, LAST, TILE // ROWS)
    z = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    z -= tl.load(shift + sample * shift_stride + channel, mask=present, other=0.0)[:, None]
    matrix, scale = None, None
    if weight is not None:
        place, stored = block_offsets(channel, present, G, ROWS)
        matrix = tl.load(weight + sample * weight_stride + place, mask=stored, other=0.0)
    if diagonal is not None:
        scale = tl.load(diagonal + sample * C + channel, mask=present, other=0.0)
    result = tl.load(bias + sample * bias_stride + channel, mask=present, other=0.0)[:, None]
    result += _mapped(z, matrix, scale, False, ROWS, PRECISION)
    if residual is not None:
        result += tl.load(residual + offset, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        result = tl.where(result < 0.0, 0.0, result)  # a maximum would hide a NaN
        if ceiling is not None:
            result = tl.where(result > ceiling, ceiling, result)
    tl.store(y + offset, result, mask=inside)


@_tuned(MAPS)
def _input_gradient_kernel(
    gradient, rectified, x, shift, weight, diagonal, slope, slopes, constant, dx,
    C, P, size, shift_stride, weight_stride, slope_stride,
    G: tl.constexpr, ROWS: tl.constexpr, LAST: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """One tile of dx."""
    C, P = _aligned(C, P, LAST, ALIGN)
    sample, channel, present, offset, inside = _tile_of_program(C, P, G, ROWS, LAST, TILE // ROWS)
    place, stored = block_offsets(channel, present, G, ROWS)
    result = tl.full((ROWS, TILE // ROWS), 0.0, tl.float32)
    if constant is not None:
        result += tl.load(constant + sample * C + channel, mask=present, other=0.0)[:, None]
    if gradient is not None:
        matrix, scale = None, None
        if weight is not None:
            matrix = tl.trans(tl.load(weight + sample * weight_stride + place, mask=stored, other=0.0))
        if diagonal is not None:
            scale = tl.load(diagonal + sample * C + channel, mask=present, other=0.0)
        values = tl.load(gradient + offset, mask=inside, other=0.0).to(tl.float32)
        if rectified is not None:
            y = tl.load(rectified + offset, mask=inside, other=0.0).to(tl.float32)
            values = tl.where(y <= 0.0, 0.0, values)
        result += _mapped(values, matrix, scale, True, ROWS, PRECISION)
    if (slope is not None) or (slopes is not None):
        matrix, scale = None, None
        if slope is not None:
            matrix = tl.load(slope + sample * slope_stride + place, mask=stored, other=0.0)
        if slopes is not None:
            scale = tl.load(slopes + sample * C + channel, mask=present, other=0.0)
        z = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
        z -= tl.load(shift + sample * shift_stride + channel, mask=present, other=0.0)[:, None]
        result += _mapped(z, matrix, scale, False, ROWS, PRECISION)
    tl.store(dx + offset, result, mask=inside)
