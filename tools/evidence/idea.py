"""The drawing of the idea, docs/idea.svg: norm, both branches, ReLU; and the affine map that is computed instead.

python -m tools.evidence.idea --out docs
"""
import argparse
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ce_mm.files import replacing

INK, FAINT, BD, IR, AFFINE = "#1b1f24", "#57606a", "#0b5cad", "#a04100", "#1a6e35"
HEIGHT = 0.62
"""Of a box; the drawing is 10 units wide."""


def main() -> int:
    """Draw it into a folder; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write idea.svg to")
    out = parser.parse_args().out
    # Letters as outlines and no date: the same file on every machine, whatever fonts it has.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "idea", "mathtext.fontset": "dejavusans"}):
        figure = draw()
        with replacing(out / "idea.svg") as unfinished:
            figure.savefig(unfinished, format="svg", metadata={"Date": None, "Creator": None})
    return 0


def draw() -> Figure:
    """Two rows: what a layer means, and what it computes."""
    figure = Figure(figsize=(10, 4.1), facecolor="white")  # its own ground, on light and on dark pages
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 10), ylim=(0, 4.1))
    axes.axis("off")
    _meaning(axes)
    axes.plot([0.25, 9.75], [1.62, 1.62], color="#d0d7de", linewidth=1)
    _computation(axes)
    return figure


def _meaning(axes: Axes) -> None:
    note(axes, 0.25, 3.88, "What a layer means", INK, size=11, weight="bold")
    middle, upper, lower = 2.78, 3.28, 2.28
    note(axes, 0.3, middle, "$x$", INK, size=15)
    arrow(axes, (0.55, middle), (0.95, middle))
    box(axes, 0.95, middle, 1.35, r"norm", INK)
    note(axes, 0.95, middle - 0.47, r"BN, GN, LN, IN, SN", FAINT)
    note(axes, 2.35, middle + 0.42, r"$\tilde{x}$", INK, size=15)
    arrow(axes, (2.3, middle), (2.95, upper))
    arrow(axes, (2.3, middle), (2.95, lower))
    box(axes, 2.95, upper, 1.75, r"$\Sigma^{-1/2}\,\tilde{x}$", BD)
    note(axes, 4.8, upper + 0.3, "batch decorrelation (BD): from the", BD)
    note(axes, 4.8, upper + 0.1, "covariance of a group of channels", BD)
    box(axes, 2.95, lower, 1.75, r"$d_n \odot \tilde{x}$", IR)
    note(axes, 4.8, lower - 0.1, "instance reweighting (IR): from the", IR)
    note(axes, 4.8, lower - 0.3, "channels' variances in each sample", IR)
    arrow(axes, (4.7, upper), (7.3, middle + 0.08), r"$\times\,\lambda$", BD)
    arrow(axes, (4.7, lower), (7.3, middle - 0.08), r"$\times\,(1-\lambda)$", IR)
    box(axes, 7.3, middle, 0.5, "+", INK)
    arrow(axes, (7.8, middle), (8.2, middle))
    box(axes, 8.2, middle, 0.9, "ReLU", INK)
    arrow(axes, (9.1, middle), (9.5, middle))
    note(axes, 9.57, middle, "$y$", INK, size=15)


def _computation(axes: Axes) -> None:
    note(axes, 0.25, 1.37, "What it computes: one affine map for each group of channels", INK, size=11, weight="bold")
    middle = 0.72
    note(axes, 0.3, middle, "$x$", INK, size=15)
    arrow(axes, (0.55, middle), (0.95, middle))
    box(axes, 0.95, middle, 1.35, "moments", INK)
    note(axes, 0.95, middle - 0.5, "one read of $x$", FAINT)
    arrow(axes, (2.3, middle), (2.95, middle))
    box(axes, 2.95, middle, 1.75, r"$W_n,\ t_n$", INK)
    note(axes, 2.95, middle - 0.5, r"norm, $\Sigma^{-1/2}$, $d_n$, $\lambda$: small tensors", FAINT)
    arrow(axes, (4.7, middle), (5.9, middle))
    box(axes, 5.9, middle, 3.2, r"$y = \mathrm{ReLU}(W_n\,x + t_n)$", AFFINE)
    note(axes, 5.9, middle - 0.5, r"one read of $x$, one write of $y$; $\tilde{x}$ is never formed", AFFINE)
    arrow(axes, (9.1, middle), (9.5, middle))
    note(axes, 9.57, middle, "$y$", INK, size=15)


def box(axes: Axes, x: float, y: float, width: float, text: str, colour: str) -> None:
    """A box whose left edge is at x, with its text in the middle."""
    place = (x, y - HEIGHT / 2)
    axes.add_patch(FancyBboxPatch(place, width, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08",
                                  facecolor="white", edgecolor=colour, linewidth=1.6))  # fmt: skip
    axes.text(x + width / 2, y, text, color=colour, fontsize=13, ha="center", va="center")


def note(axes: Axes, x: float, y: float, text: str, colour: str, size: float = 9.5, weight: str = "normal") -> None:
    """A text whose left edge is at x."""
    axes.text(x, y, text, color=colour, fontsize=size, weight=weight, ha="left", va="center")


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", colour: str = INK
) -> None:
    """An arrow, with a text on the last part of it."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=colour, linewidth=1.3,
                                   shrinkA=2, shrinkB=2))  # fmt: skip
    if text:
        x, y = start[0] + 0.62 * (end[0] - start[0]), start[1] + 0.62 * (end[1] - start[1])
        axes.text(x, y, text, color=colour, fontsize=11, ha="center", va="center",
                  bbox=dict(facecolor="white", edgecolor="none", pad=1.5))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
