"""First step of a layer, one read of x: the moments of every sample and group.

All that Channel Equilibrium needs of the input are the mean and variance of each sample and channel, and the mean
products of channels of one group. They are taken about a shift near the data: E[xx] - E[x]E[x] cancels when a channel's
mean is large against its spread, E[(x-k)(x-k)] - E[x-k]E[x-k] with k near the mean does not. Where one shift serves all
samples, and some lie far from it, their variances are taken by themselves: by the backend, or else again for those.
"""
from typing import Any

import torch
from torch import Tensor

from ce_mm.ops.backends import choose
from ce_mm.ops.custom_op import check_map, once_in_full_precision, operator, product_shape
from ce_mm.ops.joint import input_gradient
from ce_mm.ops.types import FAR_SQUARED, Link, Moments


def moments(
    x: Tensor,
    group_size: int,
    *,
    shift: Tensor | None = None,
    guess: tuple[Tensor, Tensor] | None = None,
    products: bool = True,
    per_sample: bool = False,
) -> Moments:
    """The means and variances over H·W of z = x - shift, and the means of its products inside each group.

    Args:
        x: (N, C, H, W), any floating type, either memory format (another is copied first).
        group_size: g, a divisor of C.
        shift: (C,) or (N, C), float32 at least, subtracted from x first. None chooses it, (C,) or, with ``per_sample``,
            (N, C): on a CPU that of ``guess``, and if the moments show a channel to lie far from it, they are taken
            again about its mean.
        guess: mean and variance of x as they may be, (C,), the norm's running ones for example, whose
            :func:`needed_shift` is tried first; None tries 0.
        products: whether to take the products; without, ``second`` is empty.
        per_sample: whether to keep the products of each sample, and to choose a shift for each, for a base norm whose
            scale differs between samples: where samples lie far from each other, no one shift is near all of them.

    Raises:
        ValueError: x has another shape, or g does not divide C.
        TypeError: x is of no floating type.
    """
    check_map("moments", x)
    if group_size < 1 or x.shape[1] % group_size:
        raise ValueError(f"group_size must divide the {x.shape[1]} channels, got {group_size}; see fit_group_size")
    mean, variance = guess or (None, None)
    chosen, instance, second, *link = _moments(dense(x), shift, mean, variance, group_size, products, per_sample)
    return Moments(chosen if shift is None else shift, instance, second, tuple(link), x.shape[2] * x.shape[3])


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums over a map of ``dtype`` are taken in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def data_shift(x: Tensor, per_sample: bool = False) -> Tensor:
    """A value near each channel's mean, from the middle row of every sample: no gradient flows through it.

    Args:
        x: (N, C, H, W), any floating type.
        per_sample: whether to find one for each sample.

    Returns:
        (C,) or (N, C), float32 at least; zeros for an empty batch.
    """
    dtype = compute_dtype(x.dtype)
    if not x.numel():
        return x.new_zeros(x.shape[0 if per_sample else 1 : 2], dtype=dtype)
    return x.detach()[:, :, x.shape[2] // 2].mean(dim=2 if per_sample else (0, 2), dtype=dtype)


def needed_shift(mean: Tensor, variance: Tensor) -> Tensor:
    """The mean, of any shape, where it is more than five standard deviations from 0; 0 elsewhere.

    Up to there the moments about 0 lose five of float32's 24 bits at most, and a layer's results keep a relative error
    below 4e-6, which is not worth a subtraction.
    """
    return torch.where(mean.square() > FAR_SQUARED * variance, mean, 0)


def _shift_if_needed(mean: Tensor, variance: Tensor) -> Tensor | None:
    """:func:`needed_shift`, or None if it is 0 everywhere, which is found out in fewer calls and a question."""
    return needed_shift(mean, variance) if _is_far(mean, variance) else None


def _is_far(mean: Tensor, variance: Tensor) -> Tensor:
    """Whether any mean lies more than five standard deviations from 0."""
    return torch.addcmul(variance, mean, mean, value=-1 / FAR_SQUARED).amin() < 0


def _take_apart(x: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Take the variances of samples and channels whose means, (N, C), lie far from 0 again, about these; in place."""
    samples, channels = torch.nonzero(mean.square() > FAR_SQUARED * variance, as_tuple=True)
    if not samples.numel():  # the new shift has done it
        return
    rows = x.flatten(2)[samples, channels].to(variance.dtype)
    variance[samples, channels] = rows.var(1, correction=0)


def batch_statistics(instance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of z over the whole batch, (C,), from those inside of samples, (2, N, C).

    Differentiable once.
    """
    return _BatchStatistics.apply(instance)


class _BatchStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, instance: Tensor) -> tuple[Tensor, Tensor]:
        means, inside = instance
        between, mean = torch.var_mean(means, 0, correction=0)
        ctx.save_for_backward(means, mean)
        return mean, between + inside.mean(0)

    @staticmethod
    @once_in_full_precision
    def backward(ctx: Any, dmean: Tensor, dvariance: Tensor) -> Tensor:
        means, mean = ctx.saved_tensors
        dinstance = torch.empty_like(means.expand(2, -1, -1))
        torch.addcmul(dmean, means - mean, dvariance, value=2, out=dinstance[0])
        dinstance[1] = dvariance
        return dinstance.div_(means.shape[0])


def dense(x: Tensor) -> Tensor:
    """x itself where it is dense in one of the two memory formats, else a contiguous copy."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


@operator("ce_mm::moments")
def _moments(
    x: Tensor,
    shift: Tensor | None,
    guessed_mean: Tensor | None,
    guessed_variance: Tensor | None,
    group_size: int,
    products: bool,
    per_sample: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    passes = choose(x.device, x.dtype, group_size, not x.numel())
    asks, precise = x.device.type in getattr(passes, "ASKS", ()), getattr(passes, "PRECISE", False)
    if shift is not None:
        chosen = shift.clone()
    elif not asks:
        chosen = data_shift(x, per_sample)
    else:
        chosen = x.new_zeros(x.shape[0 if per_sample else 1 : 2], dtype=compute_dtype(x.dtype))
        if guessed_mean is not None:
            assert guessed_variance is not None
            guessed = _shift_if_needed(guessed_mean.to(chosen.dtype), guessed_variance.to(chosen.dtype))
            if guessed is not None:
                chosen += guessed
    instance, second = passes.moments(x, chosen, group_size, products, per_sample)
    may_miss = asks and x.numel() and not (precise and shift is not None)
    if may_miss and _is_far(*instance):  # or else no channel of the whole batch lies far either
        if shift is None:
            missed = _shift_if_needed(*(instance if per_sample else batch_statistics(instance)))
            if missed is not None:
                chosen += missed
                instance, second = passes.moments(x, chosen, group_size, products, per_sample)
        if not per_sample and not precise:
            _take_apart(x, *instance)
    return chosen, instance, second, *_make_link(x, chosen, group_size, per_sample)


def _make_link(x: Tensor, shift: Tensor, group_size: int, per_sample: bool) -> Link:
    """Tensors of the shapes of dy, y, weight and diagonal, with a single element of memory each that nobody reads."""
    # A zero, whom tools may compare, except on a GPU, where that would cost a launch.
    of_map, of_shift = (x.new_empty, shift.new_empty) if x.is_cuda else (x.new_zeros, shift.new_zeros)
    return (
        of_map(()).expand(x.shape),
        of_map(()).expand(x.shape),
        of_shift(()).expand(product_shape(x, group_size, per_sample)),
        of_shift(()).expand(x.shape[:2]),
    )


@_moments.register_fake
def _(
    x: Tensor, shift: Tensor | None, guessed_mean: Tensor | None, guessed_variance: Tensor | None, group_size: int,
    products: bool, per_sample: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    n, c = x.shape[:2]
    second = product_shape(x, group_size, per_sample) if products else (0,)
    if shift is None:
        chosen = x.new_empty(x.shape[0 if per_sample else 1 : 2], dtype=compute_dtype(x.dtype))
    else:
        chosen = torch.empty_like(shift)
    return chosen, chosen.new_empty(2, n, c), chosen.new_empty(second), *_make_link(x, chosen, group_size, per_sample)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, _, _, _, _, ctx.products, _ = inputs
    shift, instance, *_ = output
    ctx.save_for_backward(x, shift, instance)
    ctx.mark_non_differentiable(shift)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    _: None,
    dinstance: Tensor | None,
    dsecond: Tensor | None,
    gradient: Tensor | None,
    rectified: Tensor | None,
    weight: Tensor | None,
    diagonal: Tensor | None,
) -> tuple:
    x, shift, (mean, _) = ctx.saved_tensors
    x = dense(x)  # hooks may have saved it otherwise
    positions = max(x.shape[2] * x.shape[3], 1)
    slope = slopes = offset = None
    if dinstance is not None:  # of the mean square, and what it leaves of the mean: v_n = diag E_n - m_n²
        dmean, dsquare = dinstance / positions
        offset, slopes = torch.addcmul(dmean, mean, dsquare, value=-2), dsquare * 2
    if dsecond is not None and ctx.products:
        samples = max(x.shape[0], 1) if dsecond.shape[0] == 1 else 1
        slope = (dsecond + dsecond.mT).div_(positions * samples)
    return input_gradient(gradient, rectified, x, shift, weight, diagonal, slope, slopes, offset), *(None,) * 6


_moments.register_autograd(_backward, setup_context=_setup_context)
