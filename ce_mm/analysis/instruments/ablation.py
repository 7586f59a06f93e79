"""What a network loses without some of its channels, the least active first or drawn by chance."""
import statistics
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ce_mm.analysis.ablation import RATIOS, at_random, smallest_first
from ce_mm.analysis.channels import LAYERS, channel_magnitudes
from ce_mm.analysis.instruments.inhibited_channels import check_layers, check_rectified
from ce_mm.analysis.instruments.output import LAYER, check_output, tidy, write_report
from ce_mm.analysis.instruments.source import Source

NAME = "ablation"
#: The paper drops channels of the third layer's output, five times.
DROP_LAYER = 3
RUNS = 5


def ablation(source: Source, out: Path, layers: int = LAYERS, drop_layer: int = DROP_LAYER, runs: int = RUNS) -> dict:
    """Measure the cumulative ablation and the drop curve of one layer, and write ablation.json and .png.

    Args:
        source: what to measure.
        out: folder to write to.
        layers: the cumulative ablation takes channels from so many layers, the first ones, the same part of each.
        drop_layer: the drop curve takes channels, in random orders, from this layer alone; the first is 1.
        runs: of each random curve; the order of run n is drawn with seed n, from 0.

    Returns:
        What the JSON file holds.

    Raises:
        ValueError: an argument is wrong, or the network has no such layer.
    """
    check_layers(layers)
    check_output(out, NAME, source)
    if runs < 2:
        raise ValueError(f"expected at least two runs of a random curve, for them to have a spread, got {runs}")
    subject = source.load()
    places = list(channel_magnitudes(subject.model, islice(subject.passes(), 1)))
    check_rectified(places)
    if not 1 <= drop_layer <= len(places):
        raise ValueError(
            f"there is no layer {drop_layer}: this network has {len(places)}, from 1 ({places[0]}) to {len(places)} "
            f"({places[-1]})"
        )
    intact: list[float] = []
    magnitudes = channel_magnitudes(subject.model, [lambda: intact.append(subject.evaluate())])
    first = {place: magnitudes[place] for place in places[:layers]}
    dropped = {places[drop_layer - 1]: magnitudes[places[drop_layer - 1]]}

    def from_intact(figures: list[float]) -> list[float]:
        return intact + figures  # with no channel removed, all curves begin there

    model, ratios = subject.model, RATIOS[1:]
    least = from_intact(smallest_first(model, first, subject.evaluate, ratios))
    by_chance = [from_intact(run) for run in at_random(model, first, subject.evaluate, ratios, runs)]
    drops = [from_intact(run) for run in at_random(model, dropped, subject.evaluate, ratios, runs)]
    report = dict(
        instrument=NAME,
        **source.describe(),
        samples=subject.samples,
        metric=subject.metric,
        layer=LAYER,
        ratios=RATIOS,
        cumulative=dict(
            of="at each ratio, that part of every layer's channels is zero: those of least magnitude, or at random",
            places=list(first),
            least_first=least,
            random=_summary(by_chance),
        ),
        drop=dict(
            of="at each ratio, that part of one layer's channels is zero, at random",
            layer=drop_layer,
            place=places[drop_layer - 1],
            random=_summary(drops),
        ),
    )
    write_report(report, _draw(report), out, NAME)
    return report


def _summary(runs: Sequence[Sequence[float]]) -> dict:
    """Mean and (sample) standard deviation over the runs beside the runs themselves, whose seeds are 0, 1, ..."""
    columns = list(zip(*runs, strict=True))
    return dict(
        mean=[statistics.fmean(column) for column in columns],
        spread=[statistics.stdev(column) for column in columns],
        runs=runs,
    )


def table(report: dict) -> str:
    """The report as text, a ratio a line."""
    cumulative, drop = report["cumulative"], report["drop"]
    lines = [
        f"{report['metric']} over {report['samples']} pictures; ± is the standard deviation of the runs",
        f"          first {len(cumulative['places'])} layers                   layer {drop['layer']} ({drop['place']})",
        "removed   least first   random            random",
    ]
    columns = (
        report["ratios"],
        cumulative["least_first"],
        *(part["random"][key] for part in (cumulative, drop) for key in ("mean", "spread")),
    )
    for ratio, least, mean, spread, drop_mean, drop_spread in zip(*columns, strict=True):
        random, dropped = f"{mean:.3f} ± {spread:.3f}", f"{drop_mean:.3f} ± {drop_spread:.3f}"
        lines.append(f"{ratio:7.1f}   {least:11.3f}   {random:15}   {dropped}")
    return "\n".join(lines)


def _draw(report: dict):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.8, 4.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
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
    tidy(left)
    tidy(right)
    return figure
