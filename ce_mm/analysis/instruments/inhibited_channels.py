"""The ratio of inhibited channels of each layer, by magnitude behind the rectifier and by gamma alone."""
import torch

from ce_mm.analysis import panels, say_none
from ce_mm.analysis.channels import (
    EDGES,
    channel_magnitudes,
    check_threshold,
    histogram,
    inhibited_ratios,
    mean_of_first,
)
from ce_mm.analysis.instruments.command import number_layers
from ce_mm.analysis.instruments.source import Source
from ce_mm.analysis.norms import affine_parameters


def measure(source: Source, threshold: float, layers: int) -> dict:
    """The ratio of inhibited channels behind each rectifier, all magnitudes, and the same ratio of |γ| of each norm.

    Args:
        source: what to measure.
        threshold: of the magnitude, the mean of |y| over pictures and positions; the same for |γ|.
        layers: the mean is taken over so many layers, the first ones, and so is the histogram.

    Raises:
        ValueError: an argument is wrong, or the network has no rectifier that can be watched.
    """
    check_threshold(threshold)
    if layers < 1:
        raise ValueError(f"expected at least one layer, got {layers}")
    subject = source.load()
    magnitudes = channel_magnitudes(subject.model, subject.passes())
    ratios = inhibited_ratios(magnitudes, threshold)
    gammas = {name: gamma.abs() for name, (gamma, _) in affine_parameters(subject.model).items()}
    by_gamma = inhibited_ratios(gammas, threshold)
    mean, of_gamma = _mean(ratios, layers), _mean(by_gamma, layers)
    summary = f"Inhibited (magnitude below {threshold:g}, {subject.samples} pictures): {_in_words(mean, 'layers')}"
    if of_gamma:
        summary += f"; |gamma| below {threshold:g}: {_in_words(of_gamma, 'norms')}"
    return dict(
        samples=subject.samples,
        threshold=threshold,
        mean=mean,
        layers=[
            dict(layer=number, place=place, channels=len(values), inhibited=ratios[place], magnitudes=values.tolist())
            for number, (place, values) in enumerate(magnitudes.items(), 1)
        ],
        histogram=dict(edges=EDGES, channels=histogram(torch.cat(list(magnitudes.values())[:layers]))),
        gamma=dict(mean=of_gamma, norms=[dict(norm=name, inhibited=ratio) for name, ratio in by_gamma.items()]),
        summary=summary,
    )


def _mean(ratios: dict[str, float], layers: int) -> dict | None:
    if not ratios:
        return None
    layers = min(layers, len(ratios))
    return dict(layers=layers, of_first=mean_of_first(ratios, layers), of_all=mean_of_first(ratios, len(ratios)))


def _in_words(mean: dict, what: str) -> str:
    return f"{mean['of_first']:.3f} on average over the first {mean['layers']} {what}, {mean['of_all']:.3f} over all"


def draw(report: dict):
    """The ratios by magnitude and by γ, and the histogram."""
    figure, (left, middle, right) = panels(3)
    threshold, gamma = report["threshold"], report["gamma"]
    _draw_ratios(left, report["layers"], report["mean"], f"channels with a magnitude below {threshold:g}", "layer")
    _draw_ratios(middle, gamma["norms"], gamma["mean"], f"channels with |γ| below {threshold:g}", "norm")
    counts, edges = report["histogram"]["channels"], report["histogram"]["edges"]
    # The bins are even in the logarithm but for the first, which begins at 0, and the last, which has no end.
    factor = edges[2] / edges[1]
    starts = [edges[1] / factor, *edges[1:]]
    right.bar(starts, counts, [start * (factor - 1) for start in starts], align="edge", edgecolor="white", lw=0.5)
    right.axvline(threshold, color="black", lw=1, ls="--", label=f"threshold {threshold:g}")
    title = f"magnitudes in the first {report['mean']['layers']} layers (leftmost bar: from 0)"
    right.set(title=title, xscale="log", xlabel="magnitude", ylabel="channels")
    return figure


def _draw_ratios(axis, rows: list[dict], mean: dict | None, title: str, what: str) -> None:
    axis.set(title=title, ylabel="ratio", ylim=(0, 1))
    number_layers(axis, len(rows), what)
    if mean:
        colours = ["C0" if number < mean["layers"] else "0.7" for number in range(len(rows))]
        axis.bar(range(1, len(rows) + 1), [row["inhibited"] for row in rows], color=colours)
        label = f"mean of the first {mean['layers']}: {mean['of_first']:.3f}"
        axis.axhline(mean["of_first"], color="black", lw=1, ls="--", label=label)
    if not any(row["inhibited"] for row in rows):
        say_none(axis)
