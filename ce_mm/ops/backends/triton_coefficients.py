"""The small tensors of one layer as Triton kernels: the chain of a batch norm with both branches, and the averages.

There the arithmetic of the coefficients costs nothing and their launches cost everything. So all that stays inside a
group of channels is one kernel forward, from the moments to Σ^(-1/2) and σ̃², and one backward; what joins the branches
is another pair. Between the two lies IR's gate, which joins all channels and is two matrix products of PyTorch's.

A program works on a tile of channels (:mod:`ce_mm.ops.backends.triton_tiles`). Backward computes again what forward
had in registers. What is summed over all channels is written tile by tile and summed by whoever needs it, so that the
same call gives the same bits.

Everything is float32 and every product "ieee". Multiplications and additions are not fused, since of a map of one
position the variance E - m² must be 0.
"""
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ce_mm.ops.backends import plain
from ce_mm.ops.backends.triton_tiles import block_offsets, rows_of, tile_channels, tiles_of
from ce_mm.ops.reweighting import MIN_VARIANCE, Between, Gate, logit, logit_backward
from ce_mm.ops.types import Average, Averages, Chain, Coefficients, Parameters

#: Samples that a program works on at a time.
SAMPLES = 32
#: The widest group whose half dozen matrices fit into a program's registers.
COEFFICIENTS_GROUP = 16
#: Values that a program averages at a time, how many it may have to sum, and how many buffers one kernel takes.
VALUES, MOST_VALUES, BUFFERS = 1024, 2**16, 4


class Normed(NamedTuple):
    """What the first kernel makes of the moments."""

    mean: Tensor  #: of z, (C,)
    variance: Tensor  #: likewise
    scale: Tensor  #: a, (1, C)
    offset: Tensor  #: b, (1, C)
    spread: Tensor  #: σ̃²_n, (N, C)
    spread_sums: Tensor | None  #: those of σ̃² over the samples and channels of each tile; None where not of the batch
    whitening: Tensor | None  #: Σ^(-1/2), (C/g, g, g), likewise


def coefficients(
    instance: Tensor,
    second: Tensor | None,
    shift: Tensor,
    parameters: Parameters,
    averages: Averages,
    chain: Chain,
    checks: bool,
) -> tuple[Coefficients, Tensor | None, tuple[Tensor | None, ...]]:
    """As a backend's; see :mod:`ce_mm.ops.backends`. The shift is always near the data, and nothing to check."""
    norm_weight, norm_bias, *_, mix = parameters
    mean = variance = whitening = inv_std_scale = finite = None
    if second is None:
        mean, variance, whitening, inv_std_scale = averages
        mean = mean - shift
    normed = base_norm(instance, second, mean, variance, norm_weight, norm_bias, chain)
    whitening = normed.whitening if whitening is None else whitening
    assert whitening is not None
    values, between = logit(normed.spread, _gate(parameters, chain))
    *results, inv_std_scale = combine(normed, whitening, values, mix, inv_std_scale)
    found = Averages(normed.mean, normed.variance, whitening, inv_std_scale)
    if second is not None:
        others = instance.shape[1] * chain.positions - 1
        of_x = found._replace(mean=found.mean + shift, variance=found.variance * ((others + 1) / max(others, 1)))
        momenta = chain.norm_momentum, chain.norm_momentum, chain.momentum, chain.momentum
        finite, _ = move_averages([*map(Average._make, zip(averages, of_x, momenta, strict=True))])
    kept = instance, second, *found, normed.scale, normed.offset, normed.spread, values, *between
    return Coefficients(*results), finite, kept


def coefficients_backward(
    kept: Sequence[Any],
    parameters: Parameters,
    chain: Chain,
    dweight: Tensor,
    ddiagonal: Tensor,
    dbias: Tensor,
) -> tuple[tuple[Tensor | None, Tensor, Tensor], Parameters]:
    """As a backend's; see :mod:`ce_mm.ops.backends`."""
    instance, second, mean, variance, whitening, inv_std_scale, scale, offset, spread, values, *between = kept
    norm_weight, *_, mix = parameters
    dwhitening, dscale, doffset, dvalues, (dmixes, dinv_std_scales) = combine_backward(
        dweight, ddiagonal, dbias, scale, offset, whitening, values, mix, inv_std_scale
    )
    dspread, dgate = logit_backward(dvalues, spread, _gate(parameters, chain), Between(*between))
    slope, slopes, offset_of_x, dnorm_weight, dnorm_bias = base_norm_backward(
        dwhitening, dscale, doffset, dspread, dinv_std_scales, inv_std_scale, instance, second, mean, variance,
        norm_weight, chain,
    )  # fmt: skip
    dfc1, dln_weight, dln_bias, dfc2 = dgate
    dparameters = Parameters(dnorm_weight, dnorm_bias, dfc1, dln_weight, dln_bias, dfc2, dmixes.sum().view(1))
    return (slope, slopes, offset_of_x), dparameters


def _gate(parameters: Parameters, chain: Chain) -> Gate:
    return Gate(parameters.fc1, parameters.ln_weight, parameters.ln_bias, parameters.fc2, chain.ln_eps)


def base_norm(
    instance: Tensor,
    second: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    chain: Chain,
) -> Normed:
    """Batch norm and σ̃², and of the batch Newton-Schulz; arguments as :func:`coefficients`'.

    ``second`` is None where mean and variance are given, and they are where it is not.
    """
    _, n, c = instance.shape
    group_size = 1 if second is None else chain.group_size
    spread, (scale, offset) = torch.empty_like(instance[0]), instance.new_empty(2, 1, c)
    sums = whitening = None
    if second is not None:
        mean, variance = instance.new_empty(2, c)
        sums, whitening = instance.new_empty(tiles_of(c, group_size)), torch.empty_like(second[0])
    _launch(
        _base_norm_kernel, instance, group_size, instance, second, mean, variance, norm_weight, norm_bias,
        scale, offset, spread, sums, whitening, n, c, chain.norm_eps, chain.eps, chain.bessel, T=chain.iterations,
    )  # fmt: skip
    assert mean is not None and variance is not None
    return Normed(mean, variance, scale, offset, spread, sums, whitening)


def base_norm_backward(
    dwhitening: Tensor,
    dscale: Tensor,
    doffset: Tensor,
    dspread: Tensor,
    dinv_std_scales: Tensor,
    inv_std_scale: Tensor,
    instance: Tensor,
    second: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    norm_weight: Tensor | None,
    chain: Chain,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """Through :func:`base_norm` and s^(-1/2), whose gradient comes in a part for each tile, to x, γ and β.

    Returns:
        S, s_n and o_n of :mod:`ce_mm.ops.joint`, and the gradients that γ and β have, or would have, both (C,).
    """
    _, n, c = instance.shape
    slope, (slopes, offset) = None if second is None else torch.empty_like(second), instance.new_empty(2, n, c)
    dnorm_weight, dnorm_bias = instance.new_empty(2, c)
    _launch(
        _base_norm_backward_kernel, instance, dwhitening.shape[-1], dwhitening, dscale, doffset, dspread,
        dinv_std_scales, inv_std_scale, instance, second, mean, variance, norm_weight, slope, slopes, offset,
        dnorm_weight, dnorm_bias, n, c, chain.positions, chain.norm_eps, chain.eps, chain.bessel, MIN_VARIANCE,
        T=chain.iterations,
    )  # fmt: skip
    return slope, slopes, offset, dnorm_weight, dnorm_bias


def combine(
    normed: Normed, whitening: Tensor, logit: Tensor, mix: Tensor, inv_std_scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W, e_n and t_n as :func:`~ce_mm.ops.equilibrium_affine` gives them, and the s^(-1/2) used, (1,).

    ``logit``, (N, C), is what the gate's sigmoid is taken of; where ``inv_std_scale`` is None, it is that of the batch.
    """
    n, c = logit.shape
    weight = torch.empty_like(whitening)[None]
    diagonal, bias = logit.new_empty(2, n, c)
    used = logit.new_empty(1) if inv_std_scale is None else inv_std_scale
    _launch(
        _combine_kernel, logit, weight.shape[-1], normed.scale, normed.offset, whitening, logit, mix,
        normed.spread_sums if inv_std_scale is None else None, used, weight, diagonal, bias, n, c, MIN_VARIANCE,
    )  # fmt: skip
    return weight, diagonal, bias, used


def combine_backward(
    dweight: Tensor,
    ddiagonal: Tensor,
    dbias: Tensor,
    scale: Tensor,
    offset: Tensor,
    whitening: Tensor,
    logit: Tensor,
    mix: Tensor,
    inv_std_scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Through :func:`combine`.

    Returns:
        The gradients of whitening, scale and offset, that of the logit, and (2, tiles): those of mix and of s^(-1/2),
        each in one part for each tile.
    """
    n, c = logit.shape
    group_size = whitening.shape[-1]
    dwhitening, dlogit = torch.empty_like(whitening), torch.empty_like(logit)
    dscale, doffset = logit.new_empty(2, 1, c)
    parts = logit.new_empty(2, tiles_of(c, group_size))
    _launch(
        _combine_backward_kernel, logit, group_size, dweight.contiguous(), ddiagonal.contiguous(), dbias.contiguous(),
        scale, offset, whitening, logit, mix, inv_std_scale, dwhitening, dscale, doffset, dlogit, *parts, n, c,
    )  # fmt: skip
    return dwhitening, dscale, doffset, dlogit, parts


def move_averages(averages: Sequence[Average], present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As :func:`ce_mm.ops.backends.plain.move_averages`, in one kernel; not of what would need another one."""
    if present is not None or not _fit(averages):
        return plain.move_averages(averages, present)
    finite = torch.empty((), dtype=torch.bool, device=averages[0].value.device)
    arguments: list[tuple[Any, ...]] = [
        (buffer, value.contiguous(), value.numel(), momentum) for buffer, value, momentum in averages
    ]
    largest = max(size for _, _, size, _ in arguments)
    arguments += [(None, None, 0, 0.0)] * (BUFFERS - len(arguments))
    with torch.cuda.device_of(finite):
        _average_kernel[(triton.cdiv(largest, VALUES),)](finite, *sum(arguments, ()), BLOCK=VALUES)
    # What autograd's check of saved tensors goes by, here as after lerp_.
    torch.autograd.graph.increment_version([buffer for buffer, _, _ in averages])
    return finite, finite


def _fit(averages: Sequence[Average]) -> bool:
    """Whether they are float32, dense, not too many, and with momenta that are known here."""
    return len(averages) <= BUFFERS and all(
        value.dtype == torch.float32
        and buffer.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and buffer.is_contiguous()
        and buffer.numel() <= MOST_VALUES
        and not isinstance(momentum, Tensor)
        for buffer, value, momentum in averages
    )


def _launch(
    kernel: triton.runtime.JITFunction, example: Tensor, group_size: int, *arguments: Any, **constants: Any
) -> None:
    """One program for each tile of the (..., C) tensor ``example``."""
    tiles, rows = tiles_of(example.shape[-1], group_size), rows_of(group_size)
    with torch.cuda.device_of(example):
        kernel[(tiles,)](
            *arguments, G=group_size, ROWS=rows, BLOCK=SAMPLES, **constants, num_warps=4, enable_fp_fusion=False
        )


_jit = triton.jit(do_not_specialize=["N", "C"])


@triton.jit
def _total(parts, count, BLOCK: tl.constexpr):
    """The sum of what every tile has written."""
    total = tl.full((BLOCK,), 0.0, tl.float32)
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)
        total += tl.load(parts + place, mask=place < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _samples(start, channel, present, N, C, BLOCK: tl.constexpr):
    """Where the tile of these channels and the samples from ``start`` lies in (N, C), and what of it exists."""
    sample = start + tl.arange(0, BLOCK)
    return (sample * C)[None, :] + channel[:, None], present[:, None] & (sample < N)[None, :]


@triton.jit
def _batch_statistics(instance, channel, present, N, C, BLOCK: tl.constexpr):
    """Mean and variance over the batch."""
    total = tl.full(channel.shape, 0.0, tl.float32)
    squares = tl.full(channel.shape, 0.0, tl.float32)
    for start in range(0, N, BLOCK):
        place, inside = _samples(start, channel, present, N, C, BLOCK)
        m = tl.load(instance + place, mask=inside, other=0.0)
        total += tl.sum(m, 1)
        squares += tl.sum(tl.load(instance + N * C + place, mask=inside, other=0.0) + m * m, 1)
    mean = total / N
    return mean, squares / N - mean * mean


@triton.jit
def _scale(variance, norm_weight, channel, present, norm_eps):
    """1 / sqrt(variance + eps), and the norm's a."""
    inv_std = 1.0 / tl.sqrt_rn(tl.where(present, variance + norm_eps, 1.0))
    if norm_weight is None:
        return inv_std, inv_std
    else:
        return inv_std, inv_std * tl.load(norm_weight + channel, mask=present, other=0.0)


@triton.jit
def _of_groups(values, G: tl.constexpr, ROWS: tl.constexpr):
    """For each row the sum of ``values`` over the rows of its group."""
    row = tl.arange(0, ROWS)
    same_group = (row // G)[:, None] == (row // G)[None, :]
    return tl.sum(tl.where(same_group, values[None, :], 0.0), 1)


@triton.jit
def _on_diagonal(values, ROWS: tl.constexpr):
    row = tl.arange(0, ROWS)
    return tl.where(row[:, None] == row[None, :], values, 0.0)


@triton.jit
def _covariance(second, mean, scale, present, block, stored, eps, G: tl.constexpr, ROWS: tl.constexpr):
    """Covariance of z, a aᵀ, and Σ with its trace divided out, on the blocks; the trace, of each row's group."""
    of_z = tl.load(second + block, mask=stored, other=0.0)
    of_z = tl.where(stored, of_z - mean[:, None] * mean[None, :], 0.0)
    outer = scale[:, None] * scale[None, :]
    sigma = of_z * outer + _on_diagonal(eps, ROWS)
    trace = _of_groups(tl.sum(_on_diagonal(sigma, ROWS), 1), G, ROWS)
    trace = tl.where(present, trace, 1.0)  # rows without a channel
    return of_z, outer, sigma / trace[:, None], trace


@triton.jit
def _product(left, right):
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def _root(sigma, steps, ROWS: tl.constexpr):
    """P after so many steps of Newton-Schulz, at least 1; not unrolled, which would keep every step in registers."""
    root = _on_diagonal(1.5, ROWS) - 0.5 * sigma
    for _ in range(steps - 1):
        root = 1.5 * root - 0.5 * _product(_product(root, root), _product(root, sigma))
    return root


@_jit
def _base_norm_kernel(
    instance, second, mean_place, variance_place, norm_weight, norm_bias,
    scale_out, offset_out, spread, spread_sums, whitening,
    N, C, norm_eps, eps, bessel,
    T: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean and variance are written with ``second``, and read without."""
    channel, present = tile_channels(tl.program_id(0), C, G, ROWS)
    if second is None:
        mean = tl.load(mean_place + channel, mask=present, other=0.0)
        variance = tl.load(variance_place + channel, mask=present, other=1.0)
    else:
        mean, variance = _batch_statistics(instance, channel, present, N, C, BLOCK)
        tl.store(mean_place + channel, mean, mask=present)
        tl.store(variance_place + channel, variance, mask=present)
    _, scale = _scale(variance, norm_weight, channel, present, norm_eps)
    offset = -scale * mean
    if norm_bias is not None:
        offset += tl.load(norm_bias + channel, mask=present, other=0.0)
    tl.store(scale_out + channel, scale, mask=present)
    tl.store(offset_out + channel, offset, mask=present)

    total = tl.full((ROWS,), 0.0, tl.float32)
    for start in range(0, N, BLOCK):
        place, inside = _samples(start, channel, present, N, C, BLOCK)
        variances = tl.load(instance + N * C + place, mask=inside, other=0.0)
        values = variances * (scale * scale * bessel)[:, None]
        tl.store(spread + place, values, mask=inside)
        total += tl.sum(tl.where(inside, values, 0.0), 1)

    if second is not None:
        tl.store(spread_sums + tl.program_id(0), tl.sum(total, 0))
        block, stored = block_offsets(channel, present, G, ROWS)
        _, _, sigma, _ = _covariance(second, mean, scale, present, block, stored, eps, G, ROWS)
        tl.store(whitening + block, _root(sigma, T, ROWS), mask=stored)


@_jit
def _combine_kernel(
    scale, offset, whitening, logit, mix, spread_sums,
    inv_std_scale, weight, diagonal, bias,
    N, C, min_variance,
    G: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """s^(-1/2) is written with ``spread_sums``, and read without."""
    channel, present = tile_channels(tl.program_id(0), C, G, ROWS)
    if spread_sums is None:
        of_all = tl.load(inv_std_scale)
    else:
        mean_spread = _total(spread_sums, tl.num_programs(0), BLOCK) / N / C
        mean_spread = tl.where(mean_spread < min_variance, min_variance, mean_spread)  # a maximum would hide a NaN
        of_all = 1.0 / tl.sqrt_rn(mean_spread)
        if tl.program_id(0) == 0:
            tl.store(inv_std_scale, of_all)

    ratio = tl.sigmoid(tl.load(mix))
    a = tl.load(scale + channel, mask=present, other=0.0)
    b = tl.load(offset + channel, mask=present, other=0.0)
    block, stored = block_offsets(channel, present, G, ROWS)
    shared = ratio * tl.load(whitening + block, mask=stored, other=0.0)
    tl.store(weight + block, shared * a[None, :], mask=stored)
    common = tl.sum(shared * b[None, :], 1)
    for start in range(0, N, BLOCK):
        place, inside = _samples(start, channel, present, N, C, BLOCK)
        gate = tl.sigmoid(tl.load(logit + place, mask=inside, other=0.0))
        own = gate * of_all * (1.0 - ratio)
        tl.store(diagonal + place, own * a[:, None], mask=inside)
        tl.store(bias + place, common[:, None] + own * b[:, None], mask=inside)


@_jit
def _combine_backward_kernel(
    dweight, ddiagonal, dbias, scale, offset, whitening, logit, mix, inv_std_scale,
    dwhitening, dscale, doffset, dlogit, dmixes, dinv_std_scales,
    N, C,
    G: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of mix and of s^(-1/2) are one part of theirs for each tile."""
    channel, present = tile_channels(tl.program_id(0), C, G, ROWS)
    ratio, of_all = tl.sigmoid(tl.load(mix)), tl.load(inv_std_scale)
    a = tl.load(scale + channel, mask=present, other=0.0)
    b = tl.load(offset + channel, mask=present, other=0.0)

    da = tl.full((ROWS,), 0.0, tl.float32)
    db = tl.full((ROWS,), 0.0, tl.float32)
    dcommon = tl.full((ROWS,), 0.0, tl.float32)
    dof_all = tl.full((ROWS,), 0.0, tl.float32)
    for start in range(0, N, BLOCK):
        place, inside = _samples(start, channel, present, N, C, BLOCK)
        gate = tl.sigmoid(tl.load(logit + place, mask=inside, other=0.0))
        of_diagonal = tl.load(ddiagonal + place, mask=inside, other=0.0)
        of_bias = tl.load(dbias + place, mask=inside, other=0.0)
        own = gate * of_all * (1.0 - ratio)
        down = of_diagonal * a[:, None] + of_bias * b[:, None]
        along = down * gate
        tl.store(dlogit + place, along * (1.0 - ratio) * of_all * (1.0 - gate), mask=inside)
        da += tl.sum(of_diagonal * own, 1)
        db += tl.sum(of_bias * own, 1)
        dcommon += tl.sum(of_bias, 1)
        dof_all += tl.sum(along, 1)

    block, stored = block_offsets(channel, present, G, ROWS)
    root = tl.load(whitening + block, mask=stored, other=0.0)
    of_weight = tl.load(dweight + block, mask=stored, other=0.0)
    dshared = tl.where(stored, of_weight * a[None, :] + dcommon[:, None] * b[None, :], 0.0)
    tl.store(dwhitening + block, ratio * dshared, mask=stored)
    tl.store(dscale + channel, da + tl.sum(of_weight * ratio * root, 0), mask=present)
    tl.store(doffset + channel, db + tl.sum(ratio * root * dcommon[:, None], 0), mask=present)
    of_gates = tl.sum(dof_all, 0)
    dratio = tl.sum(tl.sum(dshared * root, 1), 0) - of_all * of_gates
    tl.store(dmixes + tl.program_id(0), dratio * ratio * (1.0 - ratio))
    tl.store(dinv_std_scales + tl.program_id(0), (1.0 - ratio) * of_gates)


@triton.jit
def _root_backward(grad, sigma, T: tl.constexpr, ROWS: tl.constexpr):
    """From the gradient of :func:`_root` to -2 times that of sigma; P, its square and P Σ are symmetric."""
    dsigma = tl.full((ROWS, ROWS), 0.0, tl.float32)
    for step in range(T - 1):
        root = _root(sigma, T - 1 - step, ROWS)
        dsquare = _product(grad, _product(root, sigma))
        dproduct = _product(_product(root, root), grad)
        dsigma += _product(root, dproduct)
        inner = _product(dsquare, root) + _product(root, dsquare) + _product(dproduct, sigma)
        grad = 1.5 * grad - 0.5 * inner
    return dsigma + grad


@_jit
def _base_norm_backward_kernel(
    dwhitening, dscale, doffset, dspread, dinv_std_scales, inv_std_scale,
    instance, second, mean_place, variance_place, norm_weight, slope, slopes, offset, dnorm_weight, dnorm_bias,
    N, C, P, norm_eps, eps, bessel, min_variance,
    T: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Without ``second`` nothing but σ̃² depends on the moments."""
    channel, present = tile_channels(tl.program_id(0), C, G, ROWS)
    mean = tl.load(mean_place + channel, mask=present, other=0.0)
    inv_std, scale = _scale(
        tl.load(variance_place + channel, mask=present, other=1.0), norm_weight, channel, present, norm_eps
    )
    da = tl.load(dscale + channel, mask=present, other=0.0)
    db = tl.load(doffset + channel, mask=present, other=0.0)
    dmean = -db * scale
    common = 0.0

    if second is not None:
        block, stored = block_offsets(channel, present, G, ROWS)
        of_z, outer, sigma, trace = _covariance(second, mean, scale, present, block, stored, eps, G, ROWS)
        dsigma = _root_backward(tl.load(dwhitening + block, mask=stored, other=0.0), sigma, T, ROWS)
        along = _of_groups(tl.sum(tl.where(stored, dsigma * sigma, 0.0), 1), G, ROWS)
        dsigma = (dsigma - _on_diagonal(along[:, None], ROWS)) / (-2.0 * trace[:, None])
        dsigma = tl.where(stored, dsigma, 0.0)
        of_second = dsigma * outer
        tl.store(slope + block, (of_second + tl.trans(of_second)) / P / N, mask=stored)
        douter = dsigma * of_z
        da += tl.sum((douter + tl.trans(douter)) * scale[None, :], 1)
        dmean -= tl.sum((of_second + tl.trans(of_second)) * mean[None, :], 1)
        # Of s^(-1/2), where s is the mean of σ̃² and not clamped.
        of_all = tl.load(inv_std_scale)
        dof_all = _total(dinv_std_scales, tl.num_programs(0), BLOCK)
        cube = tl.where(of_all < 1.0 / tl.sqrt_rn(min_variance), of_all * of_all * of_all, 0.0)
        common = -0.5 * dof_all * cube / N / C

    # σ̃²_n = a² bessel v_n.
    dfactor = tl.full((ROWS,), 0.0, tl.float32)
    for start in range(0, N, BLOCK):
        place, inside = _samples(start, channel, present, N, C, BLOCK)
        variances = tl.load(instance + N * C + place, mask=inside, other=0.0)
        of_spread = tl.load(dspread + place, mask=inside, other=0.0) + common
        dfactor += tl.sum(tl.where(inside, of_spread * variances, 0.0), 1)
    da += 2.0 * bessel * scale * dfactor

    # b = β - a m, a = γ / sqrt(variance + eps), variance = E - m².
    of_weight = (da - db * mean) * inv_std
    tl.store(dnorm_weight + channel, of_weight, mask=present)
    tl.store(dnorm_bias + channel, db, mask=present)
    if second is None:
        dmean = tl.full((ROWS,), 0.0, tl.float32)
        dvariance = dmean
    else:
        dvariance = -0.5 * of_weight * scale * inv_std / N
        dmean = dmean / N - 2.0 * mean * dvariance
    factor = scale * scale * bessel
    for start in range(0, N, BLOCK):
        place, inside = _samples(start, channel, present, N, C, BLOCK)
        m = tl.load(instance + place, mask=inside, other=0.0)
        of_spread = (tl.load(dspread + place, mask=inside, other=0.0) + common) * factor[:, None]
        tl.store(slopes + place, (dvariance[:, None] + of_spread) * 2.0 / P, mask=inside)
        tl.store(offset + place, (dmean[:, None] - 2.0 * m * of_spread) / P, mask=inside)


@triton.jit
def _part_of_sum(values, size, BLOCK: tl.constexpr):
    if values is None:
        return 0.0
    else:
        return _total(values, size, BLOCK)


@triton.jit
def _move(buffer, value, size, momentum, finite, BLOCK: tl.constexpr):
    if buffer is not None:
        place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        moves = place < tl.where(finite, size, 0)
        old = tl.load(buffer + place, mask=moves, other=0.0).to(tl.float32)
        moved = old + momentum * (tl.load(value + place, mask=moves, other=0.0) - old)
        tl.store(buffer + place, moved, mask=moves)


@triton.jit
def _average_kernel(
    finite_out,
    buffer0, value0, size0, momentum0, buffer1, value1, size1, momentum1,
    buffer2, value2, size2, momentum2, buffer3, value3, size3, momentum3,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Every program sums all values, to know by itself whether they are finite, and moves its part of each buffer."""
    total = _part_of_sum(value0, size0, BLOCK) + _part_of_sum(value1, size1, BLOCK)
    total += _part_of_sum(value2, size2, BLOCK) + _part_of_sum(value3, size3, BLOCK)
    finite = total - total == 0.0
    if tl.program_id(0) == 0:
        tl.store(finite_out, finite)
    _move(buffer0, value0, size0, momentum0, finite, BLOCK)
    _move(buffer1, value1, size1, momentum1, finite, BLOCK)
    _move(buffer2, value2, size2, momentum2, finite, BLOCK)
    _move(buffer3, value3, size3, momentum3, finite, BLOCK)
