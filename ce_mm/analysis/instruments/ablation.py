"""What a network loses as channels are set to zero, least magnitude first or at random; and in one layer alone."""
import statistics
from collections.abc import Sequence
from itertools import islice

from ce_mm.analysis import panels
from ce_mm.analysis.ablation import RATIOS, at_random, smallest_first
from ce_mm.analysis.channels import channel_magnitudes
from ce_mm.analysis.instruments.source import Source


def measure(source: Source, layers: int, drop_layer: int, runs: int) -> dict:
    """The cumulative ablation of the first layers, and the drop curve of one layer.

    Args:
        source: what to measure.
        layers: the cumulative ablation takes channels from so many layers, the first ones, the same part of each.
        drop_layer: the drop curve takes channels, in random orders, from this layer alone; the first is 1.
        runs: of each random curve; the order of run n is drawn with seed n, from 0.

    Raises:
        ValueError: an argument is wrong, or the network has no such layer.
    """
    if layers < 1:
        raise ValueError(f"expected at least one layer, got {layers}")
    if runs < 2:
        raise ValueError(f"expected at least two runs of a random curve, for them to have a spread, got {runs}")
    subject = source.load()
    model = subject.model
    places = list(channel_magnitudes(model, islice(subject.passes(), 1)))
    if not 1 <= drop_layer <= len(places):
        last = f"{len(places)} ({places[-1]})"
        raise ValueError(
            f"there is no layer {drop_layer}: this network has {len(places)}, from 1 ({places[0]}) to {last}"
        )
    intact: list[float] = []  # with no channel removed, all curves begin there
    magnitudes = channel_magnitudes(model, [lambda: intact.append(subject.evaluate())])
    first, place = {place: magnitudes[place] for place in places[:layers]}, places[drop_layer - 1]
    least_first = intact + smallest_first(model, first, subject.evaluate, RATIOS[1:])
    random, dropped = (
        _summary([intact + run for run in at_random(model, of, subject.evaluate, RATIOS[1:], runs)])
        for of in (first, {place: magnitudes[place]})
    )
    half = RATIOS.index(0.5)
    return dict(
        samples=subject.samples,
        metric=subject.metric,
        ratios=RATIOS,
        cumulative=dict(places=list(first), least_first=least_first, random=random),
        drop=dict(layer=drop_layer, place=place, random=dropped),
        summary=f"{subject.metric} over {subject.samples} pictures: {intact[0]:.3f}; without half of the channels of "
        f"the first {len(first)} layers {least_first[half]:.3f} (least magnitude first) or {_of(random, half)}; of "
        f"layer {drop_layer} ({place}) alone {_of(dropped, half)}",
    )


def _summary(runs: Sequence[Sequence[float]]) -> dict:
    """Mean and (sample) standard deviation over the runs beside the runs themselves, whose seeds are 0, 1, ..."""
    ratios = list(zip(*runs, strict=True))
    return dict(mean=list(map(statistics.fmean, ratios)), spread=list(map(statistics.stdev, ratios)), runs=runs)


def _of(summary: dict, ratio: int) -> str:
    return f"{summary['mean'][ratio]:.3f} ± {summary['spread'][ratio]:.3f} (at random)"


def draw(report: dict):
    """The cumulative ablation and the drop curve."""
    figure, (left, right) = panels(2)
    right.sharey(left)
    ratios, cumulative, drop = report["ratios"], report["cumulative"], report["drop"]
    left.plot(ratios, cumulative["least_first"], color="C0", marker="o", ms=3.5, label="least magnitude first")
    for axis, summary in ((left, cumulative["random"]), (right, drop["random"])):
        low, high = (
            [mean + sign * spread for mean, spread in zip(summary["mean"], summary["spread"], strict=True)]
            for sign in (-1, 1)
        )
        label = f"at random, {len(summary['runs'])} runs ± their deviation"
        axis.plot(ratios, summary["mean"], color="C1", marker="o", ms=3.5, label=label)
        axis.fill_between(ratios, low, high, color="C1", alpha=0.25, lw=0)
        axis.set(xlabel="ratio of channels set to zero")
    left.set(title=f"in each of the first {len(cumulative['places'])} layers", ylabel=report["metric"])
    right.set(title=f"in layer {drop['layer']} ({drop['place']}) alone")
    return figure
