"""Numbers first, pictures from the numbers; a picture file is there whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ce_mm.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FORMATS = {".png": "png", ".jpg": "jpeg"}


def check_picture_path(path: Path) -> None:
    """Raise ValueError unless ``path`` can become a picture file: to be asked before the work is done."""
    if path.suffix.lower() not in FORMATS or path.is_dir():
        raise ValueError(f"{path}: expected the name of a picture to write, ending in {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist; make it first")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, which needs no display; what is at ``path`` stays until the new picture is complete."""
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format=FORMATS[path.suffix.lower()])
