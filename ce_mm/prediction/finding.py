"""Which pictures are meant, and where the result of each goes: no two to one place, and none onto a user's file."""
import glob
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

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
        here = list(_expand(name, _real(out)))
        if not here:
            raise ValueError(
                f"{name}: there is no picture in this folder; expected files ending in {', '.join(SUFFIXES)}"
                if os.path.isdir(name)
                else f"{name}: there is no such picture or folder, and as a pattern it matches none; check the path"
            )
        for path in here:
            found.setdefault(_absolute(path), path)
    if not found:
        raise ValueError("no picture is given; expected files, folders or patterns")
    return list(found.values())


def _absolute(path: Path | str) -> Path:
    return Path(os.path.abspath(path))


def _real(path: Path | str) -> Path:
    return Path(os.path.realpath(path))


def _expand(name: str, out: Path) -> Iterator[Path]:
    path = Path(name)
    if path.is_dir():
        searched, matches = _real(path), _pictures_in(path)
    elif path.exists():  # before patterns, as a bracket may also be part of a file's name
        yield path
        return
    else:
        searched = _real(os.path.dirname(re.split(r"[*?[]", name)[0]))
        matches = _matches(name)
    results_inside = out != searched and out.is_relative_to(searched)
    for match in matches:
        if not (results_inside and _real(match.parent).is_relative_to(out)):
            yield match


def _matches(pattern: str) -> Iterator[Path]:
    for match in map(Path, sorted(glob.glob(pattern, recursive=True))):
        if match.is_dir():
            yield from _pictures_in(match)
        else:
            yield match


def _pictures_in(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(parent) / name


def place(pictures: list[Path], out: Path) -> list[Path]:
    """Where the results of each picture go: a path in ``out`` to which an ending is to be added.

    The tree of the pictures is kept, from the innermost folder that holds them all. ``cat.png`` becomes ``cat``; in a
    folder where two pictures differ by their ending alone, all keep it.

    Args:
        pictures: as :func:`find_pictures` gives them.
        out: the folder for the results.

    Raises:
        ValueError: ``out`` is a file, or so chosen that results would lie among the pictures, or replace one of them
            or a file that is no result: an X.jpg or X.json, where X.json does not hold :data:`FIELDS`.
    """
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{out}: expected a folder to write to, or a name for a new one, but {there} is a file")
    paths = [_absolute(path) for path in pictures]
    top = Path(os.path.commonpath([path.parent for path in paths]))
    without_ending, ambiguous = set(), set()
    for path in paths:
        if path.with_suffix("") in without_ending:
            ambiguous.add(path.parent)
        without_ending.add(path.with_suffix(""))
    places = []
    for path in paths:
        name = path if path.parent in ambiguous else path.with_suffix("")
        places.append(out / name.relative_to(top))
        if _real(places[-1].parent) == _real(path.parent):
            raise ValueError(f"{out}: the results would lie among the pictures in {path.parent}; choose another folder")
    _check_that_nothing_is_lost(paths, places, out)
    return places


def _check_that_nothing_is_lost(pictures: list[Path], places: list[Path], out: Path) -> None:
    originals = set(map(_real, pictures))
    for place in places:
        drawn, numbers = Path(f"{place}.jpg"), Path(f"{place}.json")
        for result in (drawn, numbers):
            if _real(result) in originals:
                raise ValueError(f"{out}: a result would replace the picture {result}; choose another folder")
        there = next(filter(os.path.lexists, (drawn, numbers)), None)
        if there and not _is_result(numbers):
            raise ValueError(
                f"{out}: a result would replace {there}, which is no result: {numbers.name} beside it would say so; "
                "choose another folder, or remove that file"
            )


def _is_result(numbers: Path) -> bool:
    """Whether a file holds what is written of a picture."""
    try:
        found = json.loads(numbers.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() == set(FIELDS)
