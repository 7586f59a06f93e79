"""COCO annotation files, checked as a whole: what is wrong with one is said once, before anything is built on it."""

import json
import mmap
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Parsing takes about ten times a file's size in memory, and training parses the file once more.
FULL_PARSE_BELOW = 64 * 2**20

FIELDS = {
    "images": ("id", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area"),
    "categories": ("id", "name"),
}
EXPECTED = "expected COCO instance annotations, a JSON object with images, annotations and categories"


class AnnotationError(ValueError):
    """An annotation file that cannot be used: the message names the file, the fault and what was expected."""


def read_annotations(path: Path) -> dict[str, Any]:
    """Read and check a COCO instance annotation file.

    Args:
        path: a JSON file with ``images`` (id, width, height), ``annotations`` (id, image_id, category_id, bbox as x, y,
            width, height in pixels, area in square pixels) and ``categories`` (id, name).

    Returns:
        The file's content, unchanged.

    Raises:
        AnnotationError: no such file, a folder, empty, not JSON, not COCO (says which part is missing), an entry
            without a field that it must have, an id given twice, a box or area that is not made of
            finite numbers, no object at all.
    """
    dataset = load_json(path, AnnotationError, EXPECTED)
    if not isinstance(dataset, dict):
        raise AnnotationError(f"{path}: holds a {type(dataset).__name__}; {EXPECTED}")
    missing = [key for key in FIELDS if not isinstance(dataset.get(key), list)]
    if missing:
        raise AnnotationError(f"{path}: not COCO, the list {' and the list '.join(missing)} is missing; {EXPECTED}")
    for key, fields in FIELDS.items():
        if not dataset[key]:
            what = "annotations is empty, there is no object" if key == "annotations" else f"{key} is empty"
            raise AnnotationError(f"{path}: {what}; {EXPECTED}")
        require_fields(dataset[key], fields, f"{path}: {key}", AnnotationError)
        _require_ids(path, key, [entry["id"] for entry in dataset[key]])
    # Results are told apart by category name, and mmdet finds a category's id by its name.
    _require_unique(path, "category name", [str(category["name"]) for category in dataset["categories"]])
    for annotation in dataset["annotations"]:
        if not is_box(annotation["bbox"]) or not is_number(annotation["area"]):
            raise AnnotationError(
                f"{path}: annotation {annotation['id']} has the bbox {annotation['bbox']!r} and the area "
                f"{annotation['area']!r}; expected four finite numbers (x, y, width, height) and a finite number"
            )
    return dataset


def check_annotation_file(path: Path) -> None:
    """Refuse a file that is not a COCO annotation file, cheaply enough to do it before each training.

    A file below 64 MB is checked in full, as `read_annotations` does. A larger one is only scanned: it must start with
    ``{``, end with ``}`` (a download that broke off does not) and contain the three keys.

    Raises:
        AnnotationError: as `read_annotations`.
    """
    check_file(path, AnnotationError, EXPECTED)
    if path.stat().st_size < FULL_PARSE_BELOW:
        read_annotations(path)
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        if not text[:1024].lstrip().startswith(b"{"):
            raise AnnotationError(f"{path}: not a JSON object, it does not start with '{{'; {EXPECTED}")
        if not text[-1024:].rstrip().endswith(b"}"):
            raise AnnotationError(f"{path}: broken off, it does not end with '}}'; {EXPECTED}")
        missing = [key for key in FIELDS if text.find(b'"%s"' % key.encode()) < 0]
    if missing:
        raise AnnotationError(f"{path}: not COCO, {' and '.join(missing)} is missing; {EXPECTED}")


def check_file(path: Path, error: type[ValueError], expected: str) -> None:
    """Raise ``error`` unless ``path`` is a readable file with something in it."""
    if path.is_dir():
        raise error(f"{path}: is a folder; {expected}")
    if not path.exists():
        raise error(f"{path}: no such file; {expected}")
    if not path.is_file():
        raise error(f"{path}: is not a regular file; {expected}")
    if not os.access(path, os.R_OK):
        raise error(f"{path}: may not be read, its permissions forbid it; {expected}")
    if path.stat().st_size == 0:
        raise error(f"{path}: is empty; {expected}")


def load_json(path: Path, error: type[ValueError], expected: str) -> Any:
    """The content of a JSON file; raise ``error`` where there is none."""
    check_file(path, error, expected)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as reason:
        raise error(f"{path}: not JSON ({reason}); {expected}") from reason


def require_fields(entries: Iterable[Any], fields: Sequence[str], where: str, error: type[ValueError]) -> None:
    """Raise ``error`` for the first of ``entries`` that is no object with all ``fields``; ``where`` names the list."""
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise error(f"{where}[{index}] is a {type(entry).__name__}; expected an object with {', '.join(fields)}")
        missing = [field for field in fields if field not in entry]
        if missing:
            raise error(f"{where}[{index}] lacks {' and '.join(missing)}; each entry must have {', '.join(fields)}")


def is_number(value: Any) -> bool:
    """Whether ``value`` is an int or float that is neither NaN nor infinite, nor an int too large for a float."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_box(value: Any) -> bool:
    """Whether ``value`` is a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def _require_ids(path: Path, key: str, ids: list[Any]) -> None:
    # Pictures may be named by text instead, but pycocotools sorts their ids, so they must be of one kind.
    allowed = ({int}, {str}) if key == "images" else ({int},)
    if {type(value) for value in ids} not in allowed:
        wrong = next(value for value in ids if type(value) is not int)
        raise AnnotationError(f"{path}: {key} has the id {wrong!r}; expected integers")
    _require_unique(path, f"{key} id", ids)


def _require_unique(path: Path, what: str, values: list[Any]) -> None:
    value, count = Counter(values).most_common(1)[0]
    if count > 1:
        raise AnnotationError(f"{path}: the {what} {value!r} is given {count} times; each must be given once")
