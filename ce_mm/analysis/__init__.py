"""Numbers first, pictures from the numbers; a picture file is there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
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
    """A figure, which needs no display, with so many axes in a row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * count, 4.2), dpi=120, layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def tidy(axis: Axes) -> None:
    """A light grid, no frame on two sides, and a legend if something has a label."""
    axis.grid(which="major", color="0.88", lw=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize="small")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, which needs no display; what is at ``path`` stays until the new picture is complete."""
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format=FORMATS[path.suffix.lower()])
