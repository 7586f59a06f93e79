"""The inhibited channels of a network, layer by layer: by their magnitudes over a data set, and by γ alone."""
from pathlib import Path

import torch

from ce_mm.analysis.channels import (
    EDGES,
    LAYERS,
    THRESHOLD,
    channel_magnitudes,
    check_threshold,
    histogram,
    inhibited_ratio,
    inhibited_ratios,
    mean_of_first,
)
from ce_mm.analysis.instruments.output import LAYER, check_output, number_layers, tidy, write_report
from ce_mm.analysis.instruments.source import Source
from ce_mm.analysis.norms import affine_parameters

NAME = "inhibited_channels"


def inhibited_channels(source: Source, out: Path, threshold: float = THRESHOLD, layers: int = LAYERS) -> dict:
    """Measure, and write inhibited_channels.json and .png.

    Args:
        source: what to measure.
        out: folder to write to.
        threshold: of the magnitude, the mean of |y| over pictures and positions; the same for |γ|.
        layers: the mean is taken over so many layers, the first ones, and so is the histogram.

    Returns:
        What the JSON file holds.

    Raises:
        ValueError: an argument is wrong, or the network has no rectifier that can be watched.
    """
    check_threshold(threshold)
    check_layers(layers)
    check_output(out, NAME, source)
    subject = source.load()
    magnitudes = channel_magnitudes(subject.model, subject.passes())
    check_rectified(magnitudes)
    ratios = inhibited_ratios(magnitudes, threshold)
    by_gamma = {
        name: inhibited_ratio(gamma.abs(), threshold) for name, (gamma, _) in affine_parameters(subject.model).items()
    }
    first = torch.cat(list(magnitudes.values())[:layers])
    report = dict(
        instrument=NAME,
        **source.describe(),
        samples=subject.samples,
        threshold=threshold,
        magnitude="the mean of |y| over the pictures and positions, in eval mode",
        layer=LAYER,
        mean=_mean(ratios, layers),
        layers=[
            dict(layer=number, place=place, channels=len(values), inhibited=ratios[place], magnitudes=values.tolist())
            for number, (place, values) in enumerate(magnitudes.items(), 1)
        ],
        histogram=dict(
            of="the channels of the first layers, those of the mean; the last bin has no upper end",
            edges=EDGES,
            channels=histogram(first),
        ),
        gamma=dict(
            of="the part of the channels with |gamma| below the threshold, of every norm with a gamma, in the order "
            "in which the model holds them (those of shortcuts among them)",
            mean=_mean(by_gamma, layers),
            norms=[dict(norm=name, inhibited=ratio) for name, ratio in by_gamma.items()],
        ),
    )
    write_report(report, _draw(report), out, NAME)
    return report


def _mean(ratios: dict[str, float], layers: int) -> dict | None:
    if not ratios:
        return None
    return dict(
        layers=min(layers, len(ratios)),
        of_first=mean_of_first(ratios, layers),
        of_all=mean_of_first(ratios, len(ratios)),
    )


def check_layers(layers: int) -> None:
    """Raise ValueError unless ``layers`` is a number of layers."""
    if layers < 1:
        raise ValueError(f"expected at least one layer, got {layers}")


def check_rectified(magnitudes: dict) -> None:
    """Raise ValueError where no rectifier was seen."""
    if not magnitudes:
        raise ValueError(
            "this network has no rectified map to measure; expected nn.ReLU, LeakyReLU, ELU or ReLU6 behind a "
            "convolution, or CE with its ReLU inside"
        )


def table(report: dict) -> str:
    """The report as text, a layer a line."""
    mean, gamma = report["mean"], report["gamma"]["mean"]
    width = max(len(row["place"]) for row in report["layers"])
    lines = [f"layer  {'place':{width}}  channels  inhibited"]
    lines += [
        f"{row['layer']:5}  {row['place']:{width}}  {row['channels']:8}  {row['inhibited']:9.3f}"
        for row in report["layers"]
    ]
    lines.append(
        f"\nInhibited (magnitude below {report['threshold']:g}, {report['samples']} pictures): {mean['of_first']:.3f} "
        f"on average over the first {mean['layers']} layers, {mean['of_all']:.3f} over all"
    )
    if gamma:
        lines.append(
            f"|gamma| below {report['threshold']:g}: {gamma['of_first']:.3f} on average over the first "
            f"{gamma['layers']} norms, {gamma['of_all']:.3f} over all"
        )
    return "\n".join(lines)


def _draw(report: dict):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 4.2), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    threshold, layers = report["threshold"], report["mean"]["layers"]
    _draw_ratios(left, report["layers"], report["mean"], f"channels with a magnitude below {threshold:g}", "layer")
    gamma = report["gamma"]
    _draw_ratios(middle, gamma["norms"], gamma["mean"], f"channels with |γ| below {threshold:g}", "norm")
    counts, edges = report["histogram"]["channels"], report["histogram"]["edges"]
    # The bins are even in the logarithm but for the first, which begins at 0, and the last, which has no end.
    factor = edges[2] / edges[1]
    starts = [edges[1] / factor, *edges[1:]]
    right.bar(starts, counts, [start * (factor - 1) for start in starts], align="edge", edgecolor="white", lw=0.5)
    right.axvline(threshold, color="black", lw=1, ls="--", label=f"threshold {threshold:g}")
    right.set(
        title=f"magnitudes in the first {layers} layers (leftmost bar: from 0)",
        xscale="log", xlabel="magnitude", ylabel="channels",
    )  # fmt: skip
    tidy(right)
    return figure


def _draw_ratios(axis, rows: list[dict], mean: dict | None, title: str, what: str) -> None:
    axis.set(title=title, ylabel="ratio", ylim=(0, 1))
    number_layers(axis, len(rows), what)
    if mean:
        colours = ["C0" if number < mean["layers"] else "0.7" for number in range(len(rows))]
        axis.bar(range(1, len(rows) + 1), [row["inhibited"] for row in rows], color=colours)
        label = f"mean of the first {mean['layers']}: {mean['of_first']:.3f}"
        axis.axhline(mean["of_first"], color="black", lw=1, ls="--", label=label)
    tidy(axis)
