"""Where the statistics of a layer come from; and SyncCE, where it is the batch of all processes, as if one had it all.

Moments add up. A process sends Σ x, Σ x xᵀ inside each group, Σ_n var_hw(x_n) and two counts, C (g + 2) + 2 numbers in
one message, and what comes back is the whole batch's; backward, one message of the same size. Σ is weighted by
positions, s by samples, so that processes may differ in both, and one without samples takes part.

Each process takes its moments about a shift near its own data, which the others do not know. So the sums are of x
itself, in float64, where a mean a thousand times the spread does no harm: to agree on a shift first would be one more
message. Messages this small cost their latency, not their bytes.

A base norm that looks at each sample is applied first, and the sums are of x̃ and σ̃². A switchable norm, and a max pool
under a batch norm, need the batch's variances before that, which is a message of its own.
"""
from enum import Enum
from typing import NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from ce_mm import ops
from ce_mm.layers.branches import BatchDecorrelation, InstanceReweighting
from ce_mm.layers.norms import Kind

BD: TypeAlias = BatchDecorrelation | None
IR: TypeAlias = InstanceReweighting | None


class Source(Enum):
    """Of the statistics that a layer works with."""

    BATCH = "the batch at hand"
    PROCESSES = "the batch of all processes"
    AVERAGES = "the moving averages"


def of_all_processes(
    base: Kind, bd: BD, ir: IR, x: Tensor, moments: ops.Moments, seen: ops.Moments | None
) -> ops.Statistics:
    """The statistics of a layer over all processes of ``base.process_group``, each of which has to call this.

    Args:
        base, bd, ir: of the layer, with at least one of bd and ir.
        x: (N, C, H, W), this process's part, which may be empty.
        moments: of z = x - shift, about a shift of this process's own; with products where bd does not pool x.
        seen: the moments that Σ is taken of, where they are not those of the map.

    Returns:
        The statistics, differentiable once: gradients flow into every process's x.
    """
    return (_under_sample_norm if base.per_sample else _under_batch_norm)(base, bd, ir, x, moments, seen)


def _under_batch_norm(
    base: Kind, bd: BD, ir: IR, x: Tensor, moments: ops.Moments, seen: ops.Moments | None
) -> ops.Statistics:
    positions, group = _positions(x), base.process_group
    pools = bd is not None and bd.max_pool
    variances: list[Tensor] = [] if ir is None else [_variances(ir, moments).sum(0)]
    batch = _joined(*_of_x(moments, products=bd is not None and not pools), positions, variances, group)
    mean, variance = batch.about(moments.shift)
    scale, _ = base.affine(moments, mean, variance)

    whitening = inv_std_scale = None
    if bd is not None:
        of_map: _Joined = batch
        eps: float | Tensor = bd.eps
        if pools:
            pooled = moments if seen is None else seen
            of_map = _joined(*_of_x(pooled, products=True), pooled.positions if positions else 0, [], group)
            eps = eps * (batch.values.clamp(min=1) / of_map.values.clamp(min=1))
        a = scale.double().view(*of_map.covariance.shape[:2], 1)
        whitening = _whitening(bd, of_map.covariance * (a * a.mT), eps, scale.dtype)
    if ir is not None:
        mean_variance = (scale[0].double().square() * batch.others[0]).mean() / batch.samples.clamp(min=1)
        inv_std_scale = _inv_std_scale(mean_variance, scale.dtype)
    return ops.Statistics(mean, variance, whitening, inv_std_scale, batch.values)


def _under_sample_norm(
    base: Kind, bd: BD, ir: IR, x: Tensor, moments: ops.Moments, seen: ops.Moments | None
) -> ops.Statistics:
    positions, group, mean, variance, mean_of_x = _positions(x), base.process_group, None, None, None
    if base.mixes_samples:
        batch = _joined(*_of_x(moments, products=False), positions, [], group)
        mean, variance = batch.about(moments.shift)
        mean_of_x = batch.mean.to(variance.dtype)
    scale, offset = base.affine(moments, mean, variance)

    centre, inside, seen_positions = scale.new_empty(scale.shape[0], 0), scale.new_empty(0, 1, 1), positions
    others = [scale.new_full((), positions * scale.shape[0])]
    if bd is not None:
        seen = moments if seen is None else seen
        centre, inside = _of_normalised(seen, scale, offset)
        seen_positions = seen.positions if positions else 0
    if ir is not None:
        others.append((_variances(ir, moments) * scale.square()).sum())
    joined = _joined(centre, inside, seen_positions, others, group)

    whitening = inv_std_scale = None
    if bd is not None:
        eps = bd.eps * (joined.others[0].clamp(min=1) / joined.values.clamp(min=1))
        whitening = _whitening(bd, joined.covariance, eps, scale.dtype)
    if ir is not None:
        mean_variance = joined.others[1] / (joined.samples.clamp(min=1) * x.shape[1])
        inv_std_scale = _inv_std_scale(mean_variance, scale.dtype)
    return ops.Statistics(mean, variance, whitening, inv_std_scale, joined.others[0], mean_of_x)


def _positions(x: Tensor) -> int:
    """H·W, or 0 where x has no values: such a process has no samples either."""
    return x.shape[2] * x.shape[3] if x.numel() else 0


def _of_x(moments: ops.Moments, products: bool) -> tuple[Tensor, Tensor]:
    """Where each sample of x lies, (N, C), and the sum over samples of what varies inside them.

    That is (C/g, g, g) with products, and without them (C, 1, 1), the diagonal.
    """
    assert moments.instance is not None
    mean, variance = moments.instance
    centre = mean.double() + moments.shift.double()
    if not products:
        return centre, variance.sum(0).view(-1, 1, 1)
    assert moments.second is not None
    _, groups, g, _ = moments.second.shape
    columns = mean.T.reshape(groups, g, mean.shape[0])
    return centre, torch.baddbmm(moments.second[0], columns, columns.mT, beta=mean.shape[0], alpha=-1)


def _of_normalised(moments: ops.Moments, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`_of_x`, of x̃ = a_n z + b_n: (N, C) and (C/g, g, g)."""
    assert moments.instance is not None and moments.second is not None
    mean = moments.instance[0]
    centre = torch.addcmul(offset.double(), scale.double(), mean.double())
    return centre, ops.variation_inside_samples(mean, moments.second, scale)


def _variances(ir: InstanceReweighting, moments: ops.Moments) -> Tensor:
    """The variance of z in each sample and channel, as ir takes it, (N, C)."""
    assert moments.instance is not None
    return moments.instance[1] * ops.bessel(moments.positions, ir.correction)


def _whitening(bd: BatchDecorrelation, covariance: Tensor, eps: float | Tensor, dtype: torch.dtype) -> Tensor:
    """Σ^(-1/2) from the covariance of x̃, (C/g, g, g)."""
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return ops.newton_schulz((covariance + eps * identity).to(dtype), bd.iterations)


def _inv_std_scale(mean_variance: Tensor, dtype: torch.dtype) -> Tensor:
    """s^(-1/2), (1,), from the mean of σ̃², ()."""
    return mean_variance.clamp(min=ops.MIN_VARIANCE).rsqrt().view(1).to(dtype)


class _Joined(NamedTuple):
    """The first two moments over all processes, and what else was added up; in float64."""

    mean: Tensor  # (C,)
    covariance: Tensor  # (C/g, g, g)
    samples: Tensor  # ()
    values: Tensor  # of a channel: how many, ()
    others: list[Tensor]

    def about(self, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance of z = x - shift, of the shape of shift and (C,), in its type."""
        variance = self.covariance.diagonal(dim1=-2, dim2=-1).flatten().clamp(min=0)
        return (self.mean - shift.double()).to(shift.dtype), variance.to(shift.dtype)


def _joined(
    centre: Tensor, inside: Tensor, positions: int, others: list[Tensor], group: dist.ProcessGroup | None
) -> _Joined:
    """Add up over processes, in one message, what :func:`_of_x` or :func:`_of_normalised` found, and ``others``.

    ``positions`` is how many of them each sample has here.
    """
    centre, inside = centre.double(), inside.double()
    groups, g, _ = inside.shape
    columns = centre.T.reshape(groups, g, centre.shape[0])
    samples_here = centre.shape[0] if positions else 0
    first, second, samples, values, *others = ops.all_reduce_sums(
        [
            positions * centre.sum(0),
            positions * torch.baddbmm(inside, columns, columns.mT),
            centre.new_full((), samples_here),
            centre.new_full((), samples_here * positions),
            *(value.double() for value in others),
        ],
        group,
    )
    mean = first / values.clamp(min=1)
    column = mean.view(groups, g, 1)
    return _Joined(mean, second / values.clamp(min=1) - column * column.mT, samples, values, others)
