"""The usual layer as one function of autograd: a batch norm with both branches, for which a backend has a chain.

The three steps and the two passes of their backward follow each other as everywhere:

    moments → the backend's coefficients → group affine;    output sums → the coefficients' backward → input gradient

As one node, autograd, its checks and the link between nodes are paid for once, and the averages move with the
coefficients: at small maps all that costs more than the arithmetic. Whoever looks on, as a compiler or a mode does, is
shown the operators one by one instead.
"""
import operator
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ce_mm.ops.backends import choose
from ce_mm.ops.backends.plain import contiguous
from ce_mm.ops.base_norms import BaseNorm
from ce_mm.ops.custom_op import is_watched, once_in_full_precision
from ce_mm.ops.group_affine import first_pass, may_overwrite
from ce_mm.ops.joint import input_gradient
from ce_mm.ops.moments import compute_dtype, data_shift, dense, moments, needed_shift
from ce_mm.ops.reweighting import bessel, check_gate
from ce_mm.ops.types import Averages, Chain, Decorrelation, NormModule, Parameters, Reweighting

_Values = TypeVar("_Values", Tensor, Tensor | None)


class Usual(NamedTuple):
    """A layer that one node can compute, for maps of one shape, type and device."""

    backend: ModuleType  #: who has its chain
    parameters: Parameters
    averages: Averages
    chain: Chain
    norm: NormModule | None  #: the batch norm whose batches are counted; None takes all statistics from the averages


def as_usual(
    x: Tensor,
    residual: Tensor | None,
    base: BaseNorm,
    bd: Decorrelation,
    ir: Reweighting,
    mix: Tensor,
    momentum: float,
    learns: bool,
) -> Usual | None:
    """What :func:`usual_layer` computes a layer by, or None where that is not for it.

    Args:
        x: (N, C, H, W), a map that has been checked.
        residual: what will be added, or None.
        base, bd, ir, mix: as :func:`~ce_mm.ops.coefficients`'; base is a batch norm over this process's batch.
        momentum: of the averages of bd and ir.
        learns: whether statistics are those of the batch, which move the averages; else they are these.
    """
    if is_watched((x, residual)):
        return None
    backend = choose(x.device, x.dtype, bd.group_size, not x.numel())
    if bd.group_size > getattr(backend, "COEFFICIENTS_GROUP", 0):
        return None
    norm, work = base.norm, compute_dtype(x.dtype)
    fc1, ln, fc2 = ir.fc1, ir.ln, ir.fc2
    check_gate(fc1, ln, fc2)
    found = *base.parameters(work), fc1.weight, ln.weight, ln.bias, fc2.weight, mix
    guess = base.guess
    assert guess is not None  # of a batch norm
    buffers = *guess, bd.running_whitening, ir.running_inv_std_scale
    if is_watched(found + buffers) or not _fit(x, bd.group_size, found, buffers):
        return None
    of_found: list[Any] = [_dense(value, work) for value in found]  # None where the norm has none
    parameters = Parameters(*of_found)
    averages = Averages(*[_dense(value, work) for value in buffers])
    numbers = isinstance(norm.momentum, (int, float)) and isinstance(momentum, (int, float))
    if learns and (not numbers or any(map(operator.is_not, averages, buffers))):
        return None  # to move these takes more than a backend's chain knows of
    positions = x.shape[2] * x.shape[3]
    of_norms = bd.eps, bessel(positions, ir.correction), norm.eps, ln.eps, norm.momentum, momentum
    chain = Chain(bd.group_size, bd.iterations, positions, *of_norms)
    return Usual(backend, parameters, averages, chain, norm if learns else None)


def _fit(x: Tensor, group_size: int, parameters: tuple[Any, ...], averages: tuple[Tensor, ...]) -> bool:
    """Whether all have the shapes of one layer and are where the map is: kernels go by addresses, and would not notice;
    the chain in PyTorch calls says what is wrong. No gradient reaches averages."""
    c, hidden, device = x.shape[1], parameters[2].shape[0], x.device
    of_gate, matrices = ((hidden, c), (hidden,), (hidden,), (c, hidden)), (c // group_size, group_size, group_size)
    shapes = (c,), (c,), *of_gate, (1,), (c,), (c,), matrices, (1,)
    for tensor, shape in zip(parameters + averages, shapes, strict=True):
        if tensor is not None and (tensor.shape != shape or tensor.device != device):
            return False
    return not any(buffer.requires_grad for buffer in averages)


def _dense(values: _Values, dtype: torch.dtype) -> _Values:
    """As they are where they are of a type, and one piece of memory."""
    if values is None or (values.dtype == dtype and values.is_contiguous() and not values.is_neg()):
        return values
    return values.to(dtype).resolve_neg().contiguous()


def usual_layer(
    usual: Usual,
    x: Tensor,
    residual: Tensor | None = None,
    rectifier: float | None = None,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What moments, coefficients and group affine give, after which the averages have moved.

    Args:
        usual: what :func:`as_usual` made of the layer, and of this x.
        x: (N, C, H, W).
        residual, rectifier, overwrite: as :func:`~ce_mm.ops.group_affine`'s.

    Returns:
        The map; and, if the layer learns, whether all statistics were finite, a bool () on the device: otherwise no
        average has moved.
    """
    inputs = dense(x), residual, *usual.parameters
    if torch.is_grad_enabled():
        y, finite = _Layer.apply(*inputs, usual, rectifier)
    else:
        y, finite, _ = _forward(*inputs, usual, rectifier, overwrite=overwrite)
    return y, finite


def _forward(
    x: Tensor, residual: Tensor | None, *rest: Any, overwrite: bool = False
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    """The results, and what the backward needs beside x, y and the parameters."""
    *parameters, (backend, _, averages, chain, norm), rectifier = rest
    learns, asks, given = norm is not None, x.device.type in backend.ASKS, (Parameters(*parameters), averages, chain)
    by_averages = getattr(backend, "needed_shift", needed_shift)
    shift = by_averages(averages.mean, averages.variance) if asks or not learns else data_shift(x)
    instance, second = backend.moments(x, shift, chain.group_size, learns, False)
    found = backend.coefficients(instance, second if learns else None, shift, *given, checks=learns and asks)
    if found is None:  # a channel lies far from the shift
        shift, instance, second, *_ = moments(x, chain.group_size, guess=averages[:2])
        found = backend.coefficients(instance, second, shift, *given, checks=False)
    coefficients, finite, kept = found
    if learns:
        norm.num_batches_tracked += finite
    inputs = x, shift, *coefficients, residual, rectifier
    overwrites = dict(overwrite=True) if overwrite and may_overwrite(backend, inputs) else {}
    y = backend.group_affine(*inputs, **overwrites)
    return y, finite, (shift, coefficients.weight, coefficients.diagonal, *kept)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor | None]:
        *parameters, usual, ctx.rectifier = rest
        ctx.backend, ctx.chain = usual.backend, usual.chain
        y, finite, kept = _forward(x, residual, *rest)
        # β has no part in any gradient, and may change until then, as under PyTorch's own norms.
        needed = Parameters(*parameters)._replace(norm_bias=None)
        ctx.save_for_backward(x, None if ctx.rectifier is None else y, *needed, *kept)
        ctx.set_materialize_grads(False)
        if finite is not None:
            ctx.mark_non_differentiable(finite)
        return y, finite

    @staticmethod
    @once_in_full_precision
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        x, rectified, *rest = ctx.saved_tensors
        x, rest = dense(x), [contiguous(value) for value in rest]  # hooks may have saved them otherwise
        count = len(Parameters._fields)
        parameters, (shift, weight, diagonal, *kept) = Parameters(*rest[:count]), rest[count:]
        to_x, to_residual, *to_parameters, _, _ = ctx.needs_input_grad
        gradient, rectified, (total, inner), product = first_pass(
            dy, x, shift, rectified, ctx.rectifier, to_residual, ctx.chain.group_size, True, False
        )
        of_x, dparameters = ctx.backend.coefficients_backward(kept, parameters, ctx.chain, product, inner, total)
        dx = input_gradient(gradient, rectified, x, shift, weight, diagonal, *of_x) if to_x else None
        asked = (value if needed else None for value, needed in zip(dparameters, to_parameters, strict=True))
        return dx, gradient if to_residual else None, *asked, None, None
