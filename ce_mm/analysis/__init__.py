"""Numbers first, pictures from the numbers; a picture file is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_png_path(path: Path) -> None:
    """Raise ValueError unless ``path`` can become a PNG file: to be asked before the work is done."""
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ValueError(f"{path}: expected the name of a picture to write, ending in .png")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist; make it first")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, which needs no display, as PNG; what is at ``path`` stays until the new picture is complete."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(unfinished, format="png")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
