"""What the loops of :mod:`~tools.evidence.reliability.memory` held, as numbers, a page and a picture."""
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ce_mm.analysis import save_figure
from ce_mm.files import replacing
from tools.evidence import markdown
from tools.evidence.reliability.memory import MEASURES, TOLERANCE, Change, Memory, compare

#: What the page calls a measure, and in what unit it gives it.
_NAMES = dict(
    objects=("Python objects", 1, ""),
    tensors=("tensors among them", 1, ""),
    blocks=("blocks of Python's allocator", 1, ""),
    allocated=("handed out by the C library", 1024, ", KiB"),
    resident=("resident memory", 1024, ", KiB"),
)

_PAGE = """# Endurance: {steps:,} training steps

```bash
{command}
```

PyTorch {torch}, on a CPU. A small classifier with three CE layers (on BN with max pool, on BN with the residual add,
on GN) learns random pictures with AdamW; {warmup} steps of warm-up come first and do not count. After every
{interval}th step the garbage collector runs, and what the process holds is written down. *First* and *last* are means
over the first and the last thousand steps. Flat means that the growth from one to the other is no more than allowed:
nothing for tensors, and for the others what interpreter and allocators settle by in such a time.

Bytes that the C library has handed out include PyTorch's tensors and what autograd keeps in C++. A tensor of one number
takes 64 bytes there: one left behind by each step would be {leak:.0f} KiB of growth. Resident memory goes by pages, and
has what the allocator keeps for later.
{tables}
![What the process held, less what it held after the first hundred steps](endurance.png)
"""


def flat(runs: Mapping[str, Sequence[Memory]]) -> bool:
    """Whether no measure grew in any of the loops."""
    return all(change.flat for looks in runs.values() for change in compare(looks).values())


def write(runs: Mapping[str, Sequence[Memory]], warmup: int, folder: Path, command: str) -> None:
    """Write endurance.json, endurance.md and endurance.png.

    Args:
        runs: what each loop held, of :func:`~tools.evidence.reliability.memory.train`, all over as many steps.
        warmup: steps before the first that counts.
        folder: to write to.
        command: what repeats the page.

    Raises:
        ValueError: too few steps for a comparison.
    """
    looks = next(iter(runs.values()))
    steps, interval = looks[-1].step, looks[1].step
    comparisons = {name: compare(looks) for name, looks in runs.items()}
    numbers = dict(
        command=command,
        torch=torch.__version__,
        warmup=warmup,
        tolerance=TOLERANCE,
        loops={
            name: dict(
                changes={measure: asdict(change) for measure, change in comparisons[name].items()},
                looks=[asdict(look) for look in looks],
            )
            for name, looks in runs.items()
        },
    )
    tables = "".join(f"\n## {name}\n\n{markdown_table(changes)}\n" for name, changes in comparisons.items())
    page = _PAGE.format(
        command=command, torch=torch.__version__, steps=steps, warmup=warmup, interval=interval,
        leak=(steps - 1000) * 64 / 1024, tables=tables,
    )  # fmt: skip
    for name, text in (("endurance.json", json.dumps(numbers, indent=1) + "\n"), ("endurance.md", page)):
        with replacing(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    draw(runs, folder / "endurance.png")


def markdown_table(changes: Mapping[str, Change]) -> str:
    """A table of GitHub's Markdown, a row for each measure."""
    rows = []
    for measure, change in changes.items():
        name, unit, suffix = _NAMES[measure]
        figures = [f"{value / unit:,.1f}".removesuffix(".0") for value in (change.first, change.last)]
        growth, allowed = f"{change.growth / unit:+,.1f}", f"{TOLERANCE[measure] / unit:,.0f}"
        rows.append([name + suffix, *figures, growth, allowed, "yes" if change.flat else "no"])
    return markdown.table(["", "first", "last", "growth", "allowed", "flat"], rows)


def draw(runs: Mapping[str, Sequence[Memory]], out: Path) -> None:
    """Draw every measure against the step, less its value at the first look after the start, with what is allowed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 3.6), dpi=110, layout="constrained")
    for axis, measure in zip(figure.subplots(1, len(MEASURES)), MEASURES, strict=True):
        name, unit, suffix = _NAMES[measure]
        for run, looks in runs.items():
            values = [getattr(look, measure) for look in looks[1:]]
            axis.plot([look.step for look in looks[1:]], [(value - values[0]) / unit for value in values], label=run)
        axis.axhline(TOLERANCE[measure] / unit, color="0.5", lw=0.8, ls=":", label="allowed")
        axis.set(title=f"{name}{suffix}", xlabel="step")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, out)
