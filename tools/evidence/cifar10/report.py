"""The study's results: a table and pictures, from what was measured of each training."""
import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch

from ce_mm.analysis import add_legend, save_figure
from ce_mm.analysis.channels import mean_of_first
from ce_mm.choices import LAYERS
from ce_mm.files import replacing
from ce_mm.version import __version__
from tools.evidence import pages
from tools.evidence.cifar10.measuring import STRIDE
from tools.evidence.cifar10.running import MAIN_PAIR
from tools.evidence.cifar10.training import RECIPES

#: Whose channels the paper's figure 7(a) removes.
ABLATED = ("BN+ReLU", "BN+LReLU", "BN+ELU", "BN+CE+ReLU")
#: The numbers, the page and the pictures.
FILES = ("results.json", "results.md", "training.png", "ablation.png", "magnitudes.png")
#: What the pictures show.
PICTURES = (
    "Accuracy and inhibited channels over the epochs, and inhibited channels by layer",
    "What is lost without some of the channels: the smallest of all layers, or random ones of the third",
    "Channels below every magnitude",
)

#: What is compared of two trainings of a seed: heading to the figure of a training, in percent.
MEASURES: Mapping[str, Callable[[dict], float]] = {
    "top-1": lambda run: run["accuracy"],
    "inhibited": lambda run: 100 * run["inhibited"],
    "relatively": lambda run: 100 * relatively_inhibited(run),
    "kept, smallest first": lambda run: kept([run["smallest_first"]]),
    "kept, at random": lambda run: kept(run["at_random"]),
}

_DIFFERENCES = (
    "Differences between trainings of the same seed, in points, mean and standard deviation as above. *Kept*: accuracy",
    "without 10 to 90% of the channels, in percent of that with all, averaged over the curve (second picture), on",
    f"every {STRIDE}th test picture.",
)

_NORMS = f"γ and β of the norms, first {LAYERS} layers, channels of all seeds; the median is the mean of the seeds':"

Results = Mapping[str, Sequence[dict]]
"""Variant to what was measured of each of its seeds, with the record of its epochs as ``curve``."""
Pairs = Mapping[tuple[str, str], Mapping[int, Mapping[str, float]]]
"""(what it is compared with, variant) to seed to the difference of each of MEASURES."""


def write_report(results: Results, out: Path, recipe: str, command: str, planned: int) -> None:
    """Write :data:`FILES`, the pictures as :func:`render` does.

    Args:
        results: of the trainings that are finished.
        out: the folder to write to.
        recipe: its name.
        command: what anyone can run again.
        planned: how many trainings it has.
    """
    record = dict(
        recipe=recipe,
        command=command,
        planned=planned,
        versions=dict(ce_mm=__version__, torch=torch.__version__, python=platform.python_version()),
        results=results,
    )
    with replacing(out / FILES[0]) as unfinished:
        unfinished.write_text(json.dumps(record))  # on one line: most of it are the magnitudes of channels
    render(record, out)


def render(record: dict, out: Path) -> None:
    """Write page and pictures of a record; without matplotlib the pictures are left for another machine."""
    pages.write(out, "results", table(record))
    try:
        for draw, picture in zip((_training, _ablation, _magnitudes), FILES[2:], strict=True):
            draw(record["results"], out / picture)
    except ModuleNotFoundError as error:
        print(f"no pictures: {error}; run the same command where it is installed")


def table(record: dict) -> str:
    """The results as Markdown."""
    results, versions = record["results"], record["versions"]
    threshold = next(iter(results.values()))[0]["threshold"]
    lines = [
        "# CE on CIFAR-10",
        "",
        f"Recipe `{record['recipe']}`; PyTorch {versions['torch']}, ce_mm {versions['ce_mm']}. "
        + _pressure(record["recipe"]),
        "",
        "```bash",
        record["command"],
        "```",
        "",
        *_unfinished(record),
        "Top-1 accuracy on all test pictures after the last epoch, in percent; where there are several seeds, the mean",
        "and the standard deviation over them. *Inhibited*: the part of the channels with a magnitude below",
        f"{threshold} behind the rectifier, averaged over the first {LAYERS} layers, in percent. *Relatively*: below",
        f"{threshold} of their layer's mean magnitude, which does not depend on how large the layer's maps are.",
        "",
    ]
    lines += [pages.table(["", "seeds", *list(MEASURES)[:3]], _of_each(results))]
    pairs = _pairs(results)
    if pairs:
        lines += ["", *_DIFFERENCES, "", pages.table(["", "seeds", *MEASURES], _means(pairs))]
    if len(pairs.get(MAIN_PAIR, ())) > 1:
        seeds = [f"seed {seed}" for seed in pairs[MAIN_PAIR]]
        lines += ["", f"{MAIN_PAIR[1]} − {MAIN_PAIR[0]}, seed by seed:", ""]
        lines += [pages.table(["", *seeds], _by_seed(pairs[MAIN_PAIR]))]
    heading = ["", *(f"layer {layer}" for layer in range(1, LAYERS + 1)), "all alike"]
    for what, of_mean in (("Inhibited", False), ("Relatively inhibited", True)):
        lines += ["", f"{what} channels by layer, in percent, mean over the seeds; *all alike*, whatever their layer:"]
        lines += ["", pages.table(heading, _by_layer(results, of_mean))]
    norms = list(_norms(results))
    if norms:
        lines += ["", _NORMS, "", pages.table(["", "channels", "β ≤ 0, %", "median of abs(γ)"], norms)]
    for picture, what in zip(FILES[2:], PICTURES, strict=True):
        lines += ["", f"![{what}]({picture})"]
    return "\n".join(lines) + "\n"


def relatively_inhibited(run: dict) -> float:
    """The part of the channels below the threshold times their layer's mean magnitude, mean of the first layers."""
    return _parts_of(run, of_mean=True).mean().item()


def _parts_of(run: dict, of_mean: bool) -> torch.Tensor:
    """The part of each of the first layers' channels that is below the run's threshold, (layers,)."""
    threshold = torch.tensor([run["threshold"]], dtype=torch.float64)
    return parts_below(run["magnitudes"][:LAYERS], threshold, of_mean)[:, 0]


def kept(curves: Sequence[Sequence[float]]) -> float:
    """Accuracy without some of the channels, in percent of that with all, mean over all curves; NaN where that is 0."""
    return 100 * mean(mean(curve[1:]) / curve[0] if curve[0] else math.nan for curve in curves)


def _of_each(results: Results) -> Iterator[list[str]]:
    for name, runs in results.items():
        forms = zip(list(MEASURES.values())[:3], (".2f", ".1f", ".1f"), strict=True)
        yield [name, str(len(runs)), *(pages.spread([of(run) for run in runs], form) for of, form in forms)]


def _pairs(results: Results) -> Pairs:
    """Every variant with CE against the same without it, every other one against BN+ReLU, by the seeds of both."""
    pairs: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for name, runs in results.items():
        other = name.replace("+CE", "") if "+CE" in name else MAIN_PAIR[0]
        others = {run["seed"]: run for run in results.get(other, ())}
        for run in runs:
            if name != other and run["seed"] in others:
                difference = {what: of(run) - of(others[run["seed"]]) for what, of in MEASURES.items()}
                pairs.setdefault((other, name), {})[run["seed"]] = difference
    return pairs


def _means(pairs: Pairs) -> Iterator[list[str]]:
    for (other, name), seeds in pairs.items():
        means = (pages.spread([by_seed[what] for by_seed in seeds.values()], "+z.1f") for what in MEASURES)
        yield [f"{name} − {other}", str(len(seeds)), *means]


def _by_seed(seeds: Mapping[int, Mapping[str, float]]) -> Iterator[list[str]]:
    for what in MEASURES:
        yield [what, *(f"{by_seed[what]:+z.1f}" for by_seed in seeds.values())]


def _pressure(name: str) -> str:
    """What the recipe's weight decay comes to, beside the paper's."""
    recipe = RECIPES[name]
    which = "all weights" if recipe.norm_decay else "all weights but γ and β"
    batches = f"batch {recipe.batch}" + ", bfloat16 by autocast" * recipe.mixed
    return (
        f"{recipe.epochs} epochs, {batches}; weight decay, of {which}, times the sum of the learning rates: "
        f"{recipe.decay():.2f} (`paper`: {RECIPES['paper'].decay():.2f})."
    )


def _unfinished(record: dict) -> list[str]:
    """How many of the command's trainings are finished, if not all; the oldest records do not say how many it has."""
    finished = sum(map(len, record["results"].values()))
    planned = record.get("planned", finished)
    return [] if finished == planned else [f"Of its {planned} trainings {finished} were finished.", ""]


def _by_layer(results: Results, of_mean: bool) -> Iterator[list[str]]:
    for name, runs in results.items():
        rows = []
        for run in runs:
            parts = _parts_of(run, of_mean)
            channels = torch.tensor([len(layer) for layer in run["magnitudes"][:LAYERS]], dtype=torch.float64)
            rows.append([*parts.tolist(), (parts @ channels / channels.sum()).item()])
        yield [name, *(f"{100 * mean(column):.1f}" for column in zip(*rows, strict=True))]


def _norms(results: Results) -> Iterator[list[str]]:
    """Of each variant the kinds of channels that every training has; the oldest records have no such numbers."""
    for name, runs in results.items():
        for which in ("inhibited", "others"):
            of = [run["norms"][which] for run in runs if run.get("norms", {}).get(which, {}).get("channels")]
            if len(of) == len(runs):
                channels, nonpositive = (sum(part[count] for part in of) for count in ("channels", "nonpositive"))
                gamma = mean(part["gamma"] for part in of)
                yield [f"{name}, {which}", str(channels), f"{100 * nonpositive / channels:.1f}", f"{gamma:.3f}"]


def _figure(columns: int) -> tuple:
    from matplotlib.figure import Figure  # slow to import, and not needed for the numbers

    figure = Figure((6 * columns, 4), layout="constrained", dpi=110)
    return figure, figure.subplots(1, columns)


def _training(results: Results, path: Path) -> None:
    figure, (accuracy, inhibited, by_layer) = _figure(3)
    for index, (name, runs) in enumerate(results.items()):
        for seed, run in enumerate(runs):
            style = dict(color=f"C{index % 10}", linestyle="-" if index < 10 else "--", label=None if seed else name)
            epochs = [epoch["epoch"] for epoch in run["curve"]]
            accuracy.plot(epochs, [epoch["accuracy"] for epoch in run["curve"]], **style)
            inhibited.plot(epochs, [100 * mean_of_first(epoch["inhibited"], LAYERS) for epoch in run["curve"]], **style)
            last = [100 * ratio for ratio in run["curve"][-1]["inhibited"].values()]
            by_layer.plot(range(1, len(last) + 1), last, **style)
    accuracy.set(xlabel="epoch", ylabel="top-1 accuracy, %")
    inhibited.set(xlabel="epoch", ylabel=f"inhibited channels, %, first {LAYERS} layers")
    by_layer.set(xlabel="layer", ylabel="inhibited channels at the end, %")
    add_legend([accuracy], "right center")
    save_figure(figure, path)


def _ablation(results: Results, path: Path) -> None:
    figure, (smallest, random) = _figure(2)
    legible = {name: results[name] for name in ABLATED if name in results} or results
    for index, (name, runs) in enumerate(legible.items()):
        color, ratios = f"C{index % 10}", [100 * ratio for ratio in runs[0]["ratios"]]
        for axes, curves in (
            (smallest, [run["smallest_first"] for run in runs]),
            (random, [curve for run in runs for curve in run["at_random"]]),
        ):
            middle = [mean(values) for values in zip(*curves, strict=True)]
            axes.plot(ratios, middle, color=color, linestyle="-" if index < 10 else "--", label=name)
            low, high = ([pick(values) for values in zip(*curves, strict=True)] for pick in (min, max))
            axes.fill_between(ratios, low, high, color=color, alpha=0.15)
    smallest.set(xlabel="channels removed, %, smallest first, all layers", ylabel="top-1 accuracy, %")
    random.set(xlabel="channels removed, %, at random, third layer", ylabel="top-1 accuracy, %")
    add_legend([smallest], "right center")
    save_figure(figure, path)


def _magnitudes(results: Results, path: Path) -> None:
    """The part of inhibited channels at every threshold: of the magnitude, and of its ratio to the layer's mean."""
    figure, (absolute, relative) = _figure(2)
    thresholds = torch.logspace(-2.3, 0.5, 200, dtype=torch.float64)
    for index, (name, runs) in enumerate(results.items()):
        style = dict(color=f"C{index % 10}", linestyle="-" if index < 10 else "--")
        for axes, of_mean in ((absolute, False), (relative, True)):
            curves = torch.stack([parts_below(run["magnitudes"][:LAYERS], thresholds, of_mean).mean(0) for run in runs])
            axes.plot(thresholds, 100 * curves.mean(0), label=name, **style)
            axes.fill_between(thresholds, 100 * curves.amin(0), 100 * curves.amax(0), color=style["color"], alpha=0.15)
    absolute.axvline(next(iter(results.values()))[0]["threshold"], color="grey", linestyle=":")
    for axes, of_mean in ((absolute, ""), (relative, " ÷ its layer's mean")):
        axes.set(xscale="log", xlabel=f"magnitude{of_mean}", ylabel=f"channels below, %, first {LAYERS} layers")
    add_legend([absolute], "right center")
    save_figure(figure, path)


def parts_below(layers: Sequence[Sequence[float]], thresholds: torch.Tensor, of_mean: bool) -> torch.Tensor:
    """The part of each layer's channels below each threshold.

    Args:
        layers: the magnitudes of the channels of each.
        thresholds: (T,).
        of_mean: whether a threshold is a multiple of the layer's mean magnitude.

    Returns:
        (layers, T).
    """
    parts = []
    for layer in layers:
        values = torch.tensor(layer, dtype=torch.float64)
        values = values / values.mean() if of_mean else values
        parts.append((values[:, None] < thresholds).double().mean(0))
    return torch.stack(parts)
