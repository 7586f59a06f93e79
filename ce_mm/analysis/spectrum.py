"""How unequal the channels of a group are: the eigenvalues of the covariance Σ, of x̃ before CE and of y after it.

Batch decorrelation exists to make them equal. Their spread is the standard deviation of a group's eigenvalues over
their mean: 0 where the channels are uncorrelated and of one variance, sqrt(g - 1) where g channels are one.
"""
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ce_mm import ops
from ce_mm.analysis.norms import norm_layers
from ce_mm.layers import CENorm

#: The paper's, for norms without batch decorrelation, which have none of their own.
GROUP_SIZE = 16


class Covariance:
    """The covariance inside groups of channels, over all positions of all maps that it is given."""

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size
        self.count = 0
        self._mean: Tensor | float = 0.0
        self._sum: Tensor | float = 0.0

    def add(self, maps: Tensor) -> None:
        """Take in maps (N, C, H, W), any floating type; an empty batch changes nothing."""
        count = maps.numel() // maps.shape[1]
        if not count:
            return
        moments = ops.moments(maps, self.group_size)
        mean = moments.instance[0].mean(0)
        covariance = ops.covariance(mean, moments.second, torch.ones_like(mean)[None]).double().cpu()
        mean = (moments.shift + mean).double().cpu().view(*covariance.shape[:2], 1)
        # Two sets join by their sums of products about their own means, and the distance of these.
        step = mean - self._mean
        total = self.count + count
        self._sum = self._sum + covariance * count + step @ step.mT * (self.count * count / total)
        self._mean = self._mean + step * (count / total)
        self.count = total

    def matrices(self) -> Tensor:
        """(C/g, g, g), in float64 on the CPU."""
        return self._sum / self.count


class Spectra(NamedTuple):
    """A norm layer's covariances."""

    before: Tensor  #: (C/g, g, g), of the base norm's output x̃
    after: Tensor | None  #: (C/g, g, g), of CE's output y before residual add and rectifier; None without CE


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
    found: dict[str, tuple[Covariance, Covariance | None]] = {}

    def measure(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        if output.dim() != 4:
            return
        if name not in found:
            own = getattr(layer, "bd", None)
            size = ops.fit_group_size(x.shape[1], group_size) if own is None else own.group_size
            found[name] = Covariance(size), Covariance(size) if isinstance(layer, CENorm) else None
        before, after = found[name]
        if after is None:
            before.add(output)
        else:
            before.add(layer.norm(x))
            after.add(layer.forward(x))  # again, without the residual and the rectifier that the output may contain

    def of(name: str) -> Callable:
        return lambda layer, args, output: measure(name, layer, args[0], output)

    handles = [layer.register_forward_hook(of(name)) for name, layer in layers.items()]
    try:
        for run in passes:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: Spectra(before.matrices(), None if after is None else after.matrices())
        for name, (before, after) in found.items()
        if before.count
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
