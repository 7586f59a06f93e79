"""What a network loses without some of its channels, which are set to zero behind their rectifier.

A network that uses all its channels loses accuracy sooner than one in which many contribute nothing.
"""
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ce_mm.analysis.rectified import watching

#: The parts of the channels that a curve removes, unless told otherwise.
RATIOS = tuple(step / 10 for step in range(10))


@torch.no_grad()
def with_zeroed(model: nn.Module, channels: Mapping[str, Tensor], evaluate: Callable[[], float]) -> float:
    """What ``evaluate`` gives while some channels of ``model`` are zero.

    Args:
        model: any network.
        channels: place (see :mod:`~ce_mm.analysis.rectified`) to a bool (C,), true for the channels set to zero.
        evaluate: runs the model and returns a figure, its accuracy for example.

    Raises:
        ValueError: the network did not come by a place.
    """
    unseen = set(channels)

    def see(place: str, output: Tensor) -> Tensor | None:
        unseen.discard(place)
        mask = channels.get(place)
        return None if mask is None else output.masked_fill(mask.to(output.device)[:, None, None], 0)

    with watching(model, see):
        figure = evaluate()
    if unseen:
        raise ValueError(f"this network did not come by the places {', '.join(sorted(unseen))}")
    return figure


def smallest_first(
    model: nn.Module,
    magnitudes: Mapping[str, Tensor],
    evaluate: Callable[[], float],
    ratios: Sequence[float] = RATIOS,
) -> list[float]:
    """The cumulative ablation: at each ratio, that part of every layer's channels is zero, those of least magnitude.

    Args:
        model: any network.
        magnitudes: place to (C,), of the layers that lose channels.
        evaluate: as for :func:`with_zeroed`.
        ratios: 0 to 1.

    Returns:
        A figure for each ratio.
    """
    orders = {place: values.argsort(stable=True) for place, values in magnitudes.items()}
    return _curve(model, orders, evaluate, ratios, "least first")


def at_random(
    model: nn.Module,
    magnitudes: Mapping[str, Tensor],
    evaluate: Callable[[], float],
    ratios: Sequence[float] = RATIOS,
    runs: int = 5,
) -> list[list[float]]:
    """As :func:`smallest_first`, with the channels in an order drawn by chance, once for each of ``runs`` seeds."""
    curves = []
    for seed in range(runs):
        random = torch.Generator().manual_seed(seed)
        orders = {place: torch.randperm(len(values), generator=random) for place, values in magnitudes.items()}
        curves.append(_curve(model, orders, evaluate, ratios, f"random, seed {seed}"))
    return curves


def _curve(
    model: nn.Module, orders: Mapping[str, Tensor], evaluate: Callable[[], float], ratios: Sequence[float], name: str
) -> list[float]:
    figures = []
    for ratio in tqdm(ratios, f"channels removed ({name})", leave=False, disable=None):
        # argsort of an order is each channel's place in it.
        masks = {place: order.argsort() < round(ratio * len(order)) for place, order in orders.items()}
        figures.append(with_zeroed(model, masks, evaluate))
    return figures
