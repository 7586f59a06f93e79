"""docs/cifar10/gn_ln.md: the question, what was tried, and the answer, with every number from the record."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ce_mm.analysis import save_figure
from tools.evidence import pages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The layers in which GN+CE has its inhibited channels, among the first six: of 64, 64 and 128 channels here.
MIDDLE = slice(3, 6)
DRAWN = ("GN", "GN+BD", "GN+CE", "GN+CE, Σ of products", "GN+CE, x̄ centred")


def write_page(record: Mapping[str, Any], folder: Path) -> None:
    """Write gn_ln.md, gn_ln.json and gn_ln.png."""
    save_figure(picture(record["cases"]), folder / "gn_ln.png")
    pages.write(folder, "gn_ln", page(record), record)


def page(record: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    cases = record["cases"]
    last = {name: found[-1] for name, found in cases.items()}
    averages = [(row["inhibited"], row["averages"]["inhibited"]) for row in (last["GN+CE"], last["LN+CE"])]
    return _PAGE.format(
        **{key: record[key] for key in ("command", "torch", "ce_mm", "steps", "pictures", "threshold")},
        table=pages.table(
            ("", "inhibited, start", "end", "silent, end", "mean / spread, start", "end"),
            (_row(name, found) for name, found in cases.items()),
        ),
        answer=_ANSWER.format(
            by_averages="; ".join(f"{_layers(batch)} and {_layers(average)}" for batch, average in averages)
        ),
    )


def _row(name: str, found: list[dict]) -> tuple[str, ...]:
    first, last = found[0], found[-1]
    ratios = (f"{root_mean_square(look['before'][MIDDLE]):.2f}" for look in (first, last))
    return name, _layers(first["inhibited"]), _layers(last["inhibited"]), str(sum(last["silent"])), *ratios


def _layers(counts: list[int]) -> str:
    return " ".join(map(str, counts))


def root_mean_square(layers: list[list[float]]) -> float:
    """Over all channels of some layers."""
    values = [value for layer in layers for value in layer]
    return (sum(value * value for value in values) / len(values)) ** 0.5


def picture(cases: Mapping[str, list[dict]]) -> Figure:
    """Inhibited channels and the channels' means over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    channels, means = figure.subplots(1, 2)
    for axis in (channels, means):
        axis.grid(color="0.88", lw=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("steps")
    for name in DRAWN:
        steps = [look["step"] for look in cases[name]]
        channels.plot(steps, [sum(look["inhibited"]) for look in cases[name]], "o-", ms=3.5, label=name)
        means.plot(steps, [root_mean_square(look["before"][MIDDLE]) for look in cases[name]], "o-", ms=3.5)
    channels.set_title("inhibited channels, all seven layers")
    channels.legend(frameon=False, fontsize="small")
    means.set_title("mean / standard deviation of channels of x̃, layers 4 to 6 (RMS)", fontsize="medium")
    means.set_ylim(bottom=0)
    return figure


_PAGE = """\
# Inhibited channels behind CE on GN and LN

```bash
{command}
```

PyTorch {torch}, ce_mm {ce_mm}.

**Question.** Behind CE on GN and LN a part of the channels of the study's small network is inhibited, most of them
since the first epoch; behind GN and LN alone, and behind CE on BN and IN, none ([results.md](results.md)). Is it the
start, λ, the gate, the averages, statistics by sample, a fault in the layer, or the method?

**Experiment.** The same network, recipe (`short`), seed and pictures; the first {steps} steps of training; each case
differs in one thing. The channels of all seven layers are looked at on {pictures} test pictures, by the statistics of
these pictures.

* *times 3*: without CE, but as large as decorrelation makes it.
* *Σ diagonal*: Σ without its entries off the diagonal, so that BD scales channels and mixes none.
* *Σ of products*: Σ is the mean products of γ x̄, no mean taken out. That is eq. 20 to the letter. On BN it is the
  covariance, since there x̄ has mean 0; on GN and LN it is not.
* *x̄ centred*: each channel's mean over the batch is taken out of x̄ before γ and β, as a batch norm does.
* *not centred*, on BN: x over each channel's standard deviation, no mean taken out.

*Inhibited*: channels with a magnitude below {threshold}, by layer (of 16, 32, 32, 64, 64, 128, 128). *Silent*: channels
that the rectifier lets through nowhere, all layers. *Mean / spread*: what a channel of x̃ has for a mean, in its
standard deviations over the pictures and positions, root mean square over layers 4 to 6.

{table}

![Inhibited channels, and the channels' means, over the steps](gn_ln.png)

{answer}
"""

_ANSWER = """TODO {by_averages}"""
