"""How unequal the channels of a group are: the eigenvalues of the covariance Σ, of x̃ before CE and of y after it.

Batch decorrelation exists to make them equal. Their spread is the standard deviation of a group's eigenvalues over
their mean: 0 where the channels are uncorrelated and of one variance, sqrt(g - 1) where g channels are one.
"""
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ce_mm import ops
from ce_mm.analysis.norms import norm_layers
from ce_mm.choices import GROUP_SIZE
from ce_mm.layers import CENorm


class Covariance:
    """The covariance inside groups of channels, over all positions of all maps that it is given."""

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size
        self.count = 0
        self._mean: Tensor | float = 0.0
        self._sum: Tensor | float = 0.0

    def add(self, maps: Tensor) -> None:
        """Take in maps (N, C, H, W), any floating type; an empty batch changes nothing."""
        groups = maps.double().movedim(1, 0).flatten(1).unflatten(0, (-1, self.group_size))
        count = groups.shape[-1]
        if not count:
            return
        mean = groups.mean(-1, keepdim=True)
        centred = groups - mean
        # Two sets join by their sums of products about their own means, and the distance of these.
        step, total = mean - self._mean, self.count + count
        self._sum = self._sum + centred @ centred.mT + step @ step.mT * (self.count * count / total)
        self._mean = self._mean + step * (count / total)
        self.count = total

    def matrices(self) -> Tensor:
        """(C/g, g, g), in float64 on the CPU."""
        return self._sum.cpu() / self.count


class Spectra(NamedTuple):
    """A norm layer's covariances."""

    before: Tensor  #: (C/g, g, g), of the base norm's output x̃
    after: Tensor | None = None  #: (C/g, g, g), of CE's output y before residual add and rectifier; None without CE


@torch.no_grad()
def covariances(
    model: nn.Module, passes: Iterable[Callable[[], object]], group_size: int = GROUP_SIZE
) -> dict[str, Spectra]:
    """The covariance of the maps behind every norm of a network, and behind CE where it follows.

    Args:
        model: any network in eval mode. In training CE would have to be asked again, and its averages with it.
        passes: calls that run the model, for example one for every batch of a data set.
        group_size: for norms without batch decorrelation; halved until it divides their channels. The others are
            measured in their own groups.

    Returns:
        The norm's name to its covariances, in the order of the first calls. A norm that is called several times in a
        pass counts once, over all its maps.

    Raises:
        ValueError: a norm is in training mode.
    """
    layers = norm_layers(model)
    for name, layer in layers.items():
        if getattr(layer, "norm", layer).training:
            raise ValueError(f"{name} is in training mode; expected a network in eval mode (model.eval())")
    found: dict[str, list[Covariance]] = {}

    def measure(name: str, layer: nn.Module, args: tuple, output: Tensor) -> None:
        if output.dim() != 4:
            return
        # CE is computed again, without the residual and the rectifier that its output may contain.
        maps = (layer.norm(args[0]), layer.forward(args[0])) if isinstance(layer, CENorm) else (output,)
        own = getattr(layer, "bd", None)
        size = ops.fit_group_size(output.shape[1], group_size) if own is None else own.group_size
        for covariance, of in zip(found.setdefault(name, [Covariance(size) for _ in maps]), maps, strict=True):
            covariance.add(of)

    handles = [layer.register_forward_hook(partial(measure, name)) for name, layer in layers.items()]
    try:
        for run in passes:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: Spectra(*(covariance.matrices() for covariance in sides))
        for name, sides in found.items()
        if sides[0].count
    }


def eigenvalues(matrices: Tensor) -> Tensor:
    """The eigenvalues of covariances (groups, g, g), (groups, g), in rising order; what rounding made negative is 0."""
    return torch.linalg.eigvalsh(matrices).clamp(min=0)


def spread(values: Tensor) -> float:
    """Standard deviation over mean of each group's eigenvalues, (groups, g), averaged over the groups.

    A group of constant channels has no spread to speak of and counts as 0.
    """
    mean = values.mean(-1)
    deviation = values.std(-1, correction=0)
    return torch.where(mean > 0, deviation / mean, 0).mean().item()
