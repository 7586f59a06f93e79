"""Numbers first, pictures from the numbers; a picture file is there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ce_mm.files import check_destination, replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FORMATS = {".png": "png", ".jpg": "jpeg"}


def check_picture_path(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Raise ValueError unless ``path``, none of the ``inputs``, can become a picture file: before the work is done."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: expected the name of a picture to write, ending in {' or '.join(FORMATS)}")
    check_destination(path, inputs)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, which needs no display; what is at ``path`` stays until the new picture is complete."""
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format=FORMATS[path.suffix.lower()])
