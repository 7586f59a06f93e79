"""The networks that are compared, how each is trained for some steps, and what is asked of its channels on the way."""
import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ce_mm.layers import CENorm
from tools.evidence.cifar10.gn_ln.altered import Altered
from tools.evidence.cifar10.network import BOTH, GROUPS, Layer, Variant, build_network
from tools.evidence.cifar10.pictures import Cifar10, colour_statistics, normalised
from tools.evidence.cifar10.training import TEST_BATCH, Recipe, training_steps

ONE_GROUP = dict(type="GN", num_groups=1)
#: About what BD makes of a map at the start; three steps of Newton and Schulz reach 1.5³ at most.
GAIN = 3.0


class Case(NamedTuple):
    """A network."""

    variant: Variant
    altered: Callable[[nn.Module], nn.Module] | None = None  #: what takes the place of each norm


class Gain(nn.Module):
    """A norm, times GAIN."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def normalised(self, x: Tensor) -> Tensor:
        """What the norm gives."""
        return self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        return GAIN * self.norm(x)


CASES = {
    "GN": Case(Variant(GROUPS)),
    "GN, times 3": Case(Variant(GROUPS), Gain),
    "GN+IR": Case(Variant(GROUPS, ce=("ir",))),
    "GN+BD": Case(Variant(GROUPS, ce=("bd",))),
    "GN+CE": Case(Variant(GROUPS, ce=BOTH)),
    "GN+CE, Σ diagonal": Case(Variant(GROUPS, ce=BOTH), partial(Altered, change="diagonal")),
    "GN+CE, Σ of products": Case(Variant(GROUPS, ce=BOTH), partial(Altered, change="products")),
    "GN+CE, x̄ centred": Case(Variant(GROUPS, ce=BOTH), partial(Altered, change="centred")),
    "LN+CE": Case(Variant(ONE_GROUP, ce=BOTH)),
    "LN+CE, x̄ centred": Case(Variant(ONE_GROUP, ce=BOTH), partial(Altered, change="centred")),
    "BN, not centred": Case(Variant(dict(type="BN"), ce=()), partial(Altered, change="uncentred")),
    "BN+CE, not centred": Case(Variant(dict(type="BN"), ce=BOTH), partial(Altered, change="uncentred")),
}


def build(case: Case, widths: Sequence[int | str]) -> nn.Sequential:
    """The study's network of a case."""
    network = build_network(case.variant, widths)
    if case.altered is not None:
        for layer in network:
            if isinstance(layer, Layer):
                layer.norm = case.altered(layer.norm)
    return network


def follow(
    case: Case, recipe: Recipe, data: Cifar10, seed: int, steps: int, looks: Sequence[int], threshold: float, name: str
) -> list[dict]:
    """Train a network for some steps of one epoch, and look at its channels on the way.

    Args:
        case: which network.
        recipe: how to train; its rate is that of the first steps of the whole training.
        data: the data set; looks are at the first TEST_BATCH pictures of its test part.
        seed: of the weights, the order of the pictures and their augmentation.
        steps: how many, of those of one epoch.
        looks: after how many steps; not more than ``steps``.
        threshold: of inhibited channels.
        name: of the progress bar.

    Returns:
        For each look ``step`` and :func:`look`; of the last one, under ``averages``, also the one in eval mode.
    """
    torch.manual_seed(seed)
    network = build(case, recipe.widths)
    optimizer = torch.optim.SGD(network.parameters(), recipe.rate(0), recipe.momentum, weight_decay=recipe.weight_decay)
    colours = colour_statistics(data.train.values)
    seen = normalised(data.test.values[:TEST_BATCH], colours)
    training = training_steps(network, optimizer, recipe, data.train, colours, seed, epoch=0)
    found = []
    for step in tqdm(range(steps + 1), name, leave=False):
        if step in looks:
            found.append(dict(step=step) | look(network, seen, threshold))
        if step < steps:
            next(training)
    found[-1]["averages"] = look(network, seen, threshold, training=False)
    return found


@torch.no_grad()
def look(network: nn.Sequential, pictures: Tensor, threshold: float, training: bool = True) -> dict:
    """What the channels of each layer do; the network is left as it was.

    Args:
        network: of :func:`build`.
        pictures: (N, 3, H, W).
        threshold: of inhibited channels.
        training: whether by the statistics of these pictures.

    Returns:
        Lists with an entry a layer: inhibited (how many channels lie below the threshold), silent (how many are 0
        everywhere), before and after (the root mean square over the channels of their means in their standard
        deviations, these over all pictures and positions, in x̃ and in what the rectifier gets).
    """
    found: dict[str, list] = dict(inhibited=[], silent=[], before=[], after=[])
    x = pictures
    for module in copy.deepcopy(network).train(training):
        if not isinstance(module, Layer):
            x = module(x)
            continue
        x = module.conv(x)
        before, y = _normalised(module.norm, x), module.norm(x)
        x = y.relu()
        found["inhibited"].append(int((x.mean((0, 2, 3)) < threshold).sum()))
        found["silent"].append(int((x.amax((0, 2, 3)) == 0).sum()))
        found["before"].append(_mean_over_spread(before))
        found["after"].append(_mean_over_spread(y))
    return found


def _normalised(norm: nn.Module, x: Tensor) -> Tensor:
    if isinstance(norm, (Altered, Gain)):
        return norm.normalised(x)
    return norm.norm(x) if isinstance(norm, CENorm) else norm(x)


def _mean_over_spread(x: Tensor) -> float:
    variance, mean = torch.var_mean(x, (0, 2, 3))
    return (mean.square() / (variance + 1e-12)).mean().sqrt().item()
