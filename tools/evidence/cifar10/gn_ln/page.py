"""docs/cifar10/gn_ln.md: the question, what was tried, and the answer, with every number from the record."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ce_mm.analysis import add_legend, save_figure, tidy
from tools.evidence import pages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The layers in which GN+CE has its inhibited channels, among the first six.
MIDDLE = slice(3, 6)
DRAWN = ("GN", "GN+BD", "GN+CE", "GN+CE, Σ of products", "GN+CE, x̄ centred")


def write_page(record: Mapping[str, Any], folder: Path) -> None:
    """Write gn_ln.md, gn_ln.json and gn_ln.png."""
    save_figure(picture(record["cases"]), folder / "gn_ln.png")
    pages.write(folder, "gn_ln", page(record), record)


def page(record: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    cases = record["cases"]
    return _PAGE.format(
        **{key: record[key] for key in ("command", "torch", "ce_mm", "steps", "pictures", "threshold")},
        table=pages.table(
            ("", "inhibited, start", "end", "silent, end", "mean / spread, start", "end"),
            (_row(name, found) for name, found in cases.items()),
        ),
        gn_averages=_layers(cases["GN+CE"][-1]["averages"]["inhibited"]),
        ln_averages=_layers(cases["LN+CE"][-1]["averages"]["inhibited"]),
    )


def _row(name: str, found: list[dict]) -> tuple[str, ...]:
    first, last = found[0], found[-1]
    ratios = (f"{_middle(look):.2f}" for look in (first, last))
    return name, _layers(first["inhibited"]), _layers(last["inhibited"]), str(sum(last["silent"])), *ratios


def _layers(counts: list[int]) -> str:
    return " ".join(map(str, counts))


def _middle(look: Mapping[str, Any]) -> float:
    return fmean(look["before"][MIDDLE])


def picture(cases: Mapping[str, list[dict]]) -> Figure:
    """Inhibited channels and the channels' means over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    channels, means = figure.subplots(1, 2)
    for axis in (channels, means):
        tidy(axis)
        axis.set_xlabel("steps")
    for name in DRAWN:
        steps = [look["step"] for look in cases[name]]
        channels.plot(steps, [sum(look["inhibited"]) for look in cases[name]], "o-", ms=3.5, label=name)
        means.plot(steps, [_middle(look) for look in cases[name]], "o-", ms=3.5)
    channels.set_title("inhibited channels, all seven layers")
    add_legend([channels], "lower center", len(DRAWN))
    means.set_title("mean / standard deviation of channels of x̃, RMS, layers 4 to 6", fontsize="medium")
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

* *times 3*: without CE, but as large as decorrelation makes a map.
* *Σ diagonal*: Σ without its entries off the diagonal, so that BD scales channels and mixes none.
* *Σ of products*: Σ is the mean products of γ x̄, no mean taken out. That is eq. 20 to the letter. On BN it is the
  covariance, since there x̄ has mean 0; on GN and LN it is not.
* *x̄ centred*: each channel's mean over the batch is taken out of x̄ before γ and β, as a batch norm does.
* *not centred*, on BN: x over each channel's standard deviation, no mean taken out.

*Inhibited*: channels with a magnitude below {threshold}, by layer (of 16, 32, 32, 64, 64, 128, 128). *Silent*: channels
that the rectifier lets through nowhere, all layers. *Mean / spread*: how far a channel of x̃ has its mean from 0, in its
own standard deviations over the pictures and positions; root mean square of a layer's channels, mean of layers 4 to 6.

{table}

![Inhibited channels, and the channels' means, over the steps](gn_ln.png)

**Answer.** It is the method: batch decorrelation by a covariance, of channels whose means are not 0. Both are needed.

* *It is BD.* With IR alone channels wake up as with GN alone, only slower; with BD alone they fall silent as with CE.
  So it is neither λ, which BD alone does not have, nor the gate.
* *It is the channels' means.* With x̄ centred no channel is inhibited at any step, with all else as it was. And with
  BN's mean left in, CE has them on BN too, where no statistics are a sample's. (Without CE such a norm already has some
  at the start and does not lose them; CE begins with fewer and ends with twice as many.)
* *It is the mixing, not the size.* Three times as large, GN has few, most of them in the last layer; with Σ diagonal
  there are next to none.
* *Which Σ matters.* With Σ of products, the other reading of eq. 20, layers 1 to 5 stay almost free; layer 6 keeps
  a quarter of its inhibited channels, the last half. A large mean is then a large part of Σ, and Σ^(-1/2) makes it
  small. The covariance does not see it, but Σ^(-1/2) multiplies it like the rest.
* *It is not the start.* At the start, GN alone has more inhibited channels than with CE. GN wakes them: its channels'
  means shrink in training. Behind CE they grow.
* *It is not the averages.* In eval mode, by the averages, GN+CE has {gn_averages} after {steps} steps, LN+CE
  {ln_averages}.
* *It is no fault in the layer.* It computes what the equations say (`tests/layers` holds it against them, on GN and LN
  too); the literal layer behind the altered cases gives the same numbers where nothing is altered
  (`tests/evidence/cifar10/test_gn_ln.py`). The authors' code, too, takes the covariance about the mean and multiplies
  the map with its mean in it.

The paper puts CE behind GN, IN and LN as it is (table 7), and calls Σ a covariance. So does this package, and it has no
option for another Σ. IN is spared for the same reason as BN: each of its channels has mean 0.

**What this does not say.** One seed and half an epoch. Rows with IR in them share their first weights, and so do the
rows without. Why training drives the means apart behind BD, and together behind GN, is not shown. Whether it matters in
a long training, or in a residual network, where CE stands before the addition, is open: in four epochs the networks
with inhibited channels are the better ones all the same ([results.md](results.md)).
"""
