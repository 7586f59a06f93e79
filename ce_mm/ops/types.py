"""What one step of a layer hands to the next."""
from typing import NamedTuple

from torch import Tensor

#: What joins the backward of the moments and of the group affine; see :mod:`ce_mm.ops.joint`.
Link = tuple[Tensor, Tensor, Tensor, Tensor]


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
    count: int | Tensor = 0  #: of the values of a channel that mean and variance are of; a tensor () of all processes
    mean_of_x: Tensor | None = None  #: (C,), of all processes, where one without samples has no shift to add to mean


class Coefficients(NamedTuple):
    """Those of the group affine, differentiable once."""

    weight: Tensor | None  #: W, (1 or N, C/g, g, g); None without BD
    diagonal: Tensor | None  #: e_n, (N, C), or (1, C) of a batch norm alone; None with BD alone
    bias: Tensor  #: t_n, (N or 1, C)


class Average(NamedTuple):
    """A moving average and what moves it: ``(1 - m) buffer + m value``."""

    buffer: Tensor  #: changed in place
    value: Tensor  #: of the buffer's shape
    momentum: float | Tensor  #: m
