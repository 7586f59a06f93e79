"""Numbers first, pictures from the numbers; a picture file is there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ce_mm.files import check_destination, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = {".png": "png", ".jpg": "jpeg"}


def check_picture_path(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Raise ValueError unless ``path``, none of the ``inputs``, can become a picture file: before the work is done."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: expected the name of a picture to write, ending in {' or '.join(FORMATS)}")
    check_destination(path, inputs)


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure, which needs no display, with so many axes in a row, each with room for a legend beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * count, 4.2), dpi=120, layout="constrained")
    return figure, [part.subplots() for part in figure.subfigures(1, count, squeeze=False)[0]]


def tidy(axis: Axes) -> None:
    """A light grid, no frame on two sides, and beside it a legend if something has a label."""
    axis.grid(which="major", color="0.88", lw=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    add_legend([axis], "right upper")


def add_legend(axes: Sequence[Axes], side: str, columns: int = 1) -> None:
    """One legend of all labels in some axes, outside of them, where it hides nothing; none if nothing has a label.

    Args:
        axes: of one figure, or part of a figure, which has a constrained layout.
        side: of that figure: "right upper", "lower center", ...
        columns: of the legend.
    """
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        axes[0].figure.legend(
            handles.values(), handles.keys(), loc=f"outside {side}", ncols=columns, frameon=False, fontsize="small"
        )


def say_none(axis: Axes) -> None:
    """Say of axes in which nothing is to be seen that this is so, and no mistake."""
    axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center", va="center", color="0.4", bbox=_PAPER)


_PAPER = dict(facecolor="white", edgecolor="none", alpha=0.7, pad=2)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, which needs no display; what is at ``path`` stays until the new picture is complete."""
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format=FORMATS[path.suffix.lower()])
