"""What one step of a layer hands to the next."""
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import Tensor, nn

#: A channel lies far from 0 where its squared mean is larger than so many variances: at five standard deviations.
FAR_SQUARED = 25

#: The module of a base norm. It is of no one class: its parameters, buffers and numbers are read by PyTorch's names.
NormModule: TypeAlias = Any

#: What joins the backward of the moments and of the group affine; see :mod:`ce_mm.ops.joint`.
Link = tuple[Tensor, Tensor, Tensor, Tensor]


class Decorrelation(Protocol):
    """What is read of a module of batch decorrelation."""

    group_size: int  #: g
    iterations: int  #: T
    eps: float  #: ε, added to the diagonal of Σ
    running_whitening: Tensor  #: (C/g, g, g), the average of Σ^(-1/2)


class Reweighting(Protocol):
    """What is read of a module of instance reweighting."""

    fc1: nn.Linear  #: W1 of the gate
    ln: nn.LayerNorm
    fc2: nn.Linear  #: W2 of the gate
    correction: int  #: 1 for Bessel's
    running_inv_std_scale: Tensor  #: (1,), the average of s^(-1/2)


class Moments(NamedTuple):
    """What is taken over H·W of z = x - shift, in the work type: float32 at least."""

    shift: Tensor  #: (C,) or (N, C), without gradient: the layer as a whole does not depend on it.
    instance: Tensor | None  #: (2, N, C), mean and (biased) variance of each sample and channel, m_n and v_n.
    second: Tensor | None  #: (1, C/g, g, g), the mean of E_n over the batch, or (N, C/g, g, g); empty if not asked for.
    link: Link | None  #: what group_affine takes to share its backward with the moments.
    positions: int  #: H·W


class Statistics(NamedTuple):
    """What training takes from a batch and inference from moving averages; None where it is not known, or not used."""

    mean: Tensor | None = None  #: of z, (C,), or (N, C) about the shift of each sample
    variance: Tensor | None = None  #: biased, (C,)
    whitening: Tensor | None = None  #: Σ^(-1/2), (C/g, g, g)
    inv_std_scale: Tensor | None = None  #: s^(-1/2), (1,)
    values: int | Tensor = 0  #: of a channel, that mean and variance are of: how many; a tensor () of all processes
    mean_of_x: Tensor | None = None  #: (C,), of all processes, where one without samples has no shift to add to mean


class Coefficients(NamedTuple):
    """Those of the group affine, differentiable once."""

    weight: Tensor | None  #: W, (1 or N, C/g, g, g); None without BD
    diagonal: Tensor | None  #: e_n, (N, C), or (1, C) of a batch norm alone; None with BD alone
    bias: Tensor  #: t_n, (N or 1, C)


class Parameters(NamedTuple):
    """Those of a batch norm with both branches, in the work type, or their gradients."""

    norm_weight: Tensor | None  #: γ, (C,), or None where the norm has none
    norm_bias: Tensor | None  #: β, likewise
    fc1: Tensor  #: W1 of the gate, (C/r, C)
    ln_weight: Tensor  #: (C/r,)
    ln_bias: Tensor  #: (C/r,)
    fc2: Tensor  #: W2 of the gate, (C, C/r)
    mix: Tensor  #: the logit of λ, (1,)


class Averages(NamedTuple):
    """The moving ones of such a layer: of x, (C,), (C,), of Σ^(-1/2), (C/g, g, g), and of s^(-1/2), (1,)."""

    mean: Tensor
    variance: Tensor
    whitening: Tensor
    inv_std_scale: Tensor


class Chain(NamedTuple):
    """The numbers beside tensors that the coefficients of such a layer, and its averages, depend on."""

    group_size: int  #: g
    iterations: int  #: T
    positions: int  #: H·W
    eps: float  #: ε, added to the diagonal of Σ
    bessel: float  #: a factor of σ̃²
    norm_eps: float  #: of the batch norm
    ln_eps: float  #: of the gate's LayerNorm
    norm_momentum: float | None  #: of the averages of x; None where nothing moves them by such a number
    momentum: float  #: of the others


class Average(NamedTuple):
    """A moving average and what moves it: ``(1 - m) buffer + m value``."""

    buffer: Tensor  #: changed in place
    value: Tensor  #: of the buffer's shape
    momentum: float | Tensor  #: m
