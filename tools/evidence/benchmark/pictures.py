"""Pictures of a record of the benchmarks; needs matplotlib."""
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from ce_mm.analysis import add_legend, save_figure, say_none

COLOURS = {"BN": "0.55", "BN+SE": "C0", "IterNorm": "C2", "literal CE": "C1"}
COLOURS |= {"CE plain": "#f2a3a3", "CE compiled": "C3", "CE folded": "C4"}
COLOURS |= {"BN, torch.compile": "0.75", "CE, torch.compile": "C5"}
PANELS = dict(step="training step", eval="inference", saved="kept for backward", peak="peak of the step")


def draw_op(record: dict, out: Path) -> None:
    """Bars of the ratios to BN in every layer, and below them the scaling of the training step."""
    layers, scaling = record.get("layers", {}), record.get("scaling", {})
    rows = max(bool(layers) + bool(scaling), 1)
    figure = Figure(figsize=(16, 4.5 * rows), dpi=110, layout="constrained")
    parts = list(figure.subfigures(rows, 1, squeeze=False)[:, 0])
    if layers:
        axes = parts.pop(0).subplots(1, 4)
        labels = [shape.partition("×")[2] for shape in layers]  # the batch is in the title
        for axis, (kind, title) in zip(axes, PANELS.items(), strict=True):
            _bars(axis, kind, title, labels, list(layers.values()))
        add_legend(axes, "lower center", len(COLOURS))
    if scaling:
        for part, (name, series) in zip(parts.pop(0).subfigures(1, len(scaling)), scaling.items(), strict=True):
            _lines(part.subplots(), name, series)
    _title(figure, record)
    save_figure(figure, out)


def draw_network(record: dict, out: Path) -> None:
    """Bars of the ratios to BN in every network."""
    networks = record["networks"]
    figure = Figure(figsize=(16, 9), dpi=110, layout="constrained")
    axes = list(figure.subplots(2, 2).flat)
    for axis, (kind, title) in zip(axes, PANELS.items(), strict=True):
        _bars(axis, kind, title, list(networks), list(networks.values()))
    add_legend(axes, "lower center", len(COLOURS))
    _title(figure, record)
    save_figure(figure, out)


def draw_latency(record: dict, out: Path) -> None:
    """Bars of the times in every runtime, a panel for each network and batch."""
    networks = record["networks"].items()
    panels = [(f"{name}, batch {batch}", rows) for name, batches in networks for batch, rows in batches.items()]
    figure = Figure(figsize=(5 * len(panels), 4.5), dpi=110, layout="constrained")
    axes = list(figure.subplots(1, len(panels), squeeze=False)[0])
    for axis, (title, variants) in zip(axes, panels, strict=True):
        names = list(dict.fromkeys(name for rows in sorted(variants.values(), key=len, reverse=True) for name in rows))
        width = 0.8 / len(variants)
        for index, (variant, rows) in enumerate(variants.items()):
            places = [names.index(name) + (index - (len(variants) - 1) / 2) * width for name in rows]
            times = [row["over_eager"]["ms"] for row in rows.values()]
            axis.bar(places, times, width, color=COLOURS[variant], label=variant)
        axis.set(title=title, ylabel="ms", xticks=range(len(names)))
        axis.set_xticklabels(names, fontsize="small")
    add_legend(axes, "lower center", len(COLOURS))
    _title(figure, record)
    save_figure(figure, out)


PICTURES = dict(op=draw_op, network=draw_network, latency=draw_latency)


def _bars(axis, kind: str, title: str, labels: Sequence[str], groups: Sequence[dict[str, dict]]) -> None:
    """A group of bars for each label, a bar for each variant that it has, whiskers at the quartiles."""
    names = list(dict.fromkeys(name for group in groups for name in group))
    width = 0.8 / max(len(names), 1)
    for name in names:
        found = [(place, group[name][kind]) for place, group in enumerate(groups) if name in group]
        shifts = [list(group).index(name) - (len(group) - 1) / 2 for group in groups if name in group]
        places = [place + shift * width for (place, _), shift in zip(found, shifts, strict=True)]
        heights = [bar["ratio"] for _, bar in found]
        whiskers = [
            [bar["ratio"] - bar.get("low", bar["ratio"]) for _, bar in found],
            [bar.get("high", bar["ratio"]) - bar["ratio"] for _, bar in found],
        ]
        bars = axis.bar(places, heights, width, yerr=whiskers, color=COLOURS[name], ecolor="0.3", label=name)
        if name.startswith("CE"):
            axis.bar_label(bars, fmt="%.2f", label_type="center", rotation=90, fontsize=7)
    axis.axhline(1, color="0.3", lw=0.8, ls=":")
    axis.set(title=f"{title}, over BN's", xticks=range(len(labels)))
    axis.set_xticklabels(labels, fontsize="small")
    if not names:
        say_none(axis)


def _lines(axis, name: str, series: dict) -> None:
    """The times of BN and CE against one size, with their exponents."""
    for layer, found in series["variants"].items():
        label = f"{layer}: exponent {found['exponent']:.2f}"
        axis.loglog(series["sizes"], found["ms"], "o-", color=COLOURS[layer], label=label)
    axis.set_xticks(series["sizes"], map(str, series["sizes"]))
    axis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set(title=f"training step against {name}", xlabel=name, ylabel="ms")
    add_legend([axis], "lower center")


def _title(figure: Figure, record: dict) -> None:
    machine, settings = record["machine"], record["settings"]
    figure.suptitle(
        f"{machine['device']}, PyTorch {machine['torch']}, batch {settings['batch']}, {settings['dtype']}, "
        f"{settings['layout']}"
    )
