"""Train a small CE network for 10,000 steps and see whether memory stays flat.

python -m tools.evidence.reliability.endurance --out docs/reliability

Two loops: batches of one shape, and batches of changing number and size with evaluations between. Writes
endurance.json, endurance.md and endurance.png. Exit code: 0 flat, 1 something grew, 2 the arguments or the system do
not do. Needs Linux with glibc.
"""
import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ce_mm.analysis import save_figure
from ce_mm.files import check_folder
from tools.evidence import pages
from tools.evidence.reliability.memory import LOOPS, MEASURES, TOLERANCE, Change, Memory, compare, train

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
on GN) learns random pictures with AdamW; {warmup:,} steps of warm-up come first and do not count, as Python's allocator
settles in them. After every {interval}th step the garbage collector runs, and what the process holds is written down.
*First* and *last* are means over the first and the last thousand steps. Flat means that the growth from one to the
other is no more than allowed: nothing for tensors, and for the others what interpreter and allocators settle by in such
a time.

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
        runs: what each loop held, of :func:`train`, all over as many steps.
        warmup: steps before the first that counts.
        folder: to write to, made if need be.
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
    pages.write(folder, "endurance", page, numbers)
    draw(runs, folder / "endurance.png")


def markdown_table(changes: Mapping[str, Change]) -> str:
    """A table of GitHub's Markdown, a row for each measure."""
    rows = []
    for measure, change in changes.items():
        name, unit, suffix = _NAMES[measure]
        figures = [f"{value / unit:,.1f}".removesuffix(".0") for value in (change.first, change.last)]
        growth, allowed = f"{change.growth / unit:+,.1f}", f"{TOLERANCE[measure] / unit:,.0f}"
        rows.append([name + suffix, *figures, growth, allowed, "yes" if change.flat else "no"])
    return pages.table(["", "first", "last", "growth", "allowed", "flat"], rows)


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


def main() -> int:
    """Parse the arguments, run the loops, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the numbers, the page and the picture")
    parser.add_argument("--steps", type=int, default=10_000, help="of each loop, at least 2000 (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=3000, help="steps before these (default: %(default)s)")
    args = parser.parse_args()
    try:
        if args.steps < 2000 or args.warmup < 1:
            raise ValueError(
                "the first thousand steps are compared with the last, so --steps must be at least 2000 and --warmup at "
                f"least 1, got {args.steps} and {args.warmup}"
            )
        check_folder(args.out, [f"endurance.{suffix}" for suffix in ("json", "md", "png")])
        runs = {name: train(loop, args.steps, args.warmup, progress=name) for name, loop in LOOPS.items()}
        write(runs, args.warmup, args.out, pages.command_line("reliability.endurance", sys.argv[1:]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    verdict = flat(runs)
    print(f"{'flat' if verdict else 'something grew'}: {args.out / 'endurance.md'}")
    return 0 if verdict else 1


if __name__ == "__main__":
    sys.exit(main())
