"""Which pictures are meant, and where the result of each goes: no two to one place, and none onto a user's file."""
import glob
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ce_mm.files import check_folder

SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""What a file in a folder ends with to be taken for a picture."""
FIELDS = ("file_name", "width", "height", "score_threshold", "objects")
"""What the JSON file of a result holds, by which it is known for one."""


def find_pictures(wanted: Iterable[str | Path], out: Path) -> list[Path]:
    """Files that are wanted by name, as all pictures of a folder, or by a pattern.

    Args:
        wanted: each a file, whatever its ending; a folder, in which all pictures are taken, those of folders in it too,
            but nothing whose name begins with a dot; or a pattern of files and folders with ``*``, ``?``, ``[...]``,
            where ``**`` stands for any folders.
        out: folder for the results. Where it lies in a folder that is searched, it is left out: what was drawn another
            time is not wanted.

    Returns:
        Each file once, in the order in which they are wanted; those of a folder or pattern sorted by name.

    Raises:
        ValueError: nothing is wanted, or one of the wanted does not exist, holds no picture or matches nothing.
    """
    found: dict[Path, Path] = {}
    for name in map(str, wanted):
        here = list(_expand(name, out.resolve()))
        if not here:
            raise ValueError(
                f"{name}: there is no picture in this folder; expected files ending in {', '.join(SUFFIXES)}"
                if os.path.isdir(name)
                else f"{name}: there is no such picture or folder, and as a pattern it matches none; check the path"
            )
        for path in here:
            found.setdefault(path.resolve(), path)
    if not found:
        raise ValueError("no picture is given; expected files, folders or patterns")
    return list(found.values())


def _expand(name: str, out: Path) -> Iterator[Path]:
    if os.path.exists(name):  # before patterns, as a bracket may also be part of a file's name
        start, matches = Path(name), [Path(name)]
    else:
        start = Path(os.path.dirname(re.split(r"[*?[]", name)[0]))
        matches = map(Path, sorted(glob.glob(name, recursive=True)))
    searches_results = start.resolve().is_relative_to(out)
    for match in matches:
        for path in _pictures_in(match) if match.is_dir() else [match]:
            if searches_results or not path.parent.resolve().is_relative_to(out):
                yield path


def _pictures_in(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(parent) / name


def place(pictures: list[Path], out: Path) -> list[Path]:
    """Where the results of each picture go: a path in ``out`` to which an ending is to be added.

    The tree of the pictures is kept, from the innermost folder that holds them all. ``cat.png`` becomes ``cat``; where
    two pictures differ by their ending alone, all keep it.

    Args:
        pictures: as :func:`find_pictures` gives them.
        out: the folder for the results.

    Raises:
        ValueError: ``out`` is a file, or so chosen that results would lie among the pictures, or replace a file that
            is no result: an X.jpg or X.json, where X.json does not hold :data:`FIELDS`.
    """
    check_folder(out, [])
    paths = [Path(os.path.abspath(path)) for path in pictures]
    top = Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(top).with_suffix("") for path in paths]
    if len(set(names)) < len(names):
        names = [path.relative_to(top) for path in paths]
    places = [out / name for name in names]
    folders = {path.parent.resolve() for path in paths}
    for place in places:
        if place.parent.resolve() in folders:
            raise ValueError(
                f"{out}: the results would lie among the pictures in {place.parent}; choose another folder"
            )
        drawn, numbers = Path(f"{place}.jpg"), Path(f"{place}.json")
        there = next(filter(os.path.lexists, (drawn, numbers)), None)
        if there and not _is_result(numbers):
            raise ValueError(
                f"{out}: a result would replace {there}, which is no result: {numbers.name} beside it would say so; "
                "choose another folder, or remove that file"
            )
    return places


def _is_result(numbers: Path) -> bool:
    """Whether a file holds what is written of a picture."""
    try:
        found = json.loads(numbers.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() == set(FIELDS)
