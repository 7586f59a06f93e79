"""How much each channel of a network contributes: its magnitude after the rectifier.

A channel is *inhibited* where its magnitude, the mean of |y| over the pictures and positions, lies below a threshold.
"""
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

import torch
from torch import Tensor, nn

from ce_mm.analysis.rectified import watching

#: Of a histogram of magnitudes: four bins for a factor of ten; the first bin begins at 0, the last has no end.
EDGES = (0.0, *(10 ** (step / 4) for step in range(-16, 8)))


class Magnitudes:
    """The mean of |y| for every channel of the maps that :meth:`see` is shown, which :func:`watching` can call."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    @torch.no_grad()
    def see(self, place: str, output: Tensor) -> None:
        """Add a map, (N, C, H, W), unless it is empty, to what was shown of its place; no device is waited for."""
        if not output.numel():
            return
        # In two sums, which is several times as fast on a CPU as one, and as linalg.vector_norm.
        total = output.abs().sum((2, 3), dtype=torch.promote_types(output.dtype, torch.float32)).double().sum(0)
        self._sums[place] = total + self._sums.get(place, 0)
        self._counts[place] = self._counts.get(place, 0) + output.numel() // output.shape[1]

    def means(self) -> dict[str, Tensor]:
        """Place to magnitudes (C,), in float64 on the CPU, in the order in which the places were seen first."""
        return {place: total.cpu() / self._counts[place] for place, total in self._sums.items()}


@torch.no_grad()
def channel_magnitudes(model: nn.Module, passes: Iterable[Callable[[], object]]) -> dict[str, Tensor]:
    """The mean of |y| for every channel behind every rectifier.

    Args:
        model: any network, in the mode in which it is to be measured.
        passes: calls that run the model, for example one for every batch of a data set.

    Returns:
        Place (see :mod:`~ce_mm.analysis.rectified`) to magnitudes (C,) in float64 on the CPU, in the order of the
        calls. A map counts by its samples and positions, so that batches and pictures of any size join rightly.

    Raises:
        ValueError: there was no rectified map.
    """
    magnitudes = Magnitudes()
    with watching(model, magnitudes.see):
        for run in passes:
            run()
    means = magnitudes.means()
    if not means:
        raise ValueError(
            "this network has no rectified map to measure; expected nn.ReLU, LeakyReLU, ELU or ReLU6 behind a "
            "convolution, or CE with its ReLU inside"
        )
    return means


def check_threshold(threshold: float) -> None:
    """Raise ValueError unless ``threshold`` is one below which a magnitude can lie."""
    if not threshold >= 0:
        raise ValueError(f"the threshold of inhibited channels must be at least 0, got {threshold!r}")


def inhibited_ratios(magnitudes: Mapping[str, Tensor], threshold: float) -> dict[str, float]:
    """The part of the channels, (C,), of every place whose magnitude lies below ``threshold``, 0 to 1."""
    return {place: (values < threshold).double().mean().item() for place, values in magnitudes.items()}


def mean_of_first(ratios: Mapping[str, float], layers: int) -> float:
    """The mean over the first ``layers`` layers, each counted once however many channels it has; all, if fewer."""
    first = list(islice(ratios.values(), layers))
    return sum(first) / len(first)


def histogram(magnitudes: Tensor) -> list[int]:
    """How many of the channels, (C,), have a magnitude in each bin; the edge at which one begins is in it."""
    bins = torch.bucketize(magnitudes, torch.tensor(EDGES, dtype=magnitudes.dtype), right=True) - 1
    return torch.bincount(bins, minlength=len(EDGES)).tolist()
