"""COCO annotation files, checked as a whole: what is wrong with one is said once, before anything is built on it."""

import json
import logging
import mmap
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ce_mm.evaluation.entries import check_entries, is_known, require_fields, shown

# Parsing takes about ten times a file's size in memory, and training parses the file once more.
FULL_PARSE_BELOW = 64 * 2**20

# What mmdet's CocoDataset reads of each entry. Other readers need more or less.
TRAINING = {
    "images": ("id", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area"),
    "categories": ("id", "name"),
}
EXPECTED = "expected COCO instance annotations, a JSON object with images, annotations and categories"

logger = logging.getLogger(__name__)


class AnnotationError(ValueError):
    """An annotation file that cannot be used: the message names the file, the fault and what was expected."""


def read_annotations(path: Path, fields: Mapping[str, Sequence[str]] = TRAINING) -> dict[str, Any]:
    """Read and check a COCO instance annotation file.

    Args:
        path: a JSON file with ``images``, ``categories`` and, where there are objects, ``annotations``.
        fields: of each of the three, which fields the reader needs: each entry must have them, with values as in COCO's
            format (bbox as x, y, width, height in pixels, area in square pixels). The id is always among them.

    Returns:
        The file's content; ``annotations`` and their ``iscrowd``, which may be missing, are empty and 0 there.

    Raises:
        AnnotationError: no such file, a folder, empty, not JSON, not COCO (says which part is missing), an entry that
            lacks a field that is needed, or has another value than COCO's format allows, an id given twice, an object
            of a picture or category that is not in the file.
    """
    dataset = _read_lists(path)
    for annotation in dataset["annotations"]:
        if isinstance(annotation, dict):
            annotation.setdefault("iscrowd", 0)
    _check_pictures_and_categories(path, dataset, fields)
    _check_list(path, dataset, "annotations", fields["annotations"])
    return dataset


def check_annotation_file(path: Path) -> int | None:
    """Refuse a file that a run could not use, cheaply enough to do it before each training.

    A file below 64 MB is checked in full, for what mmdet's CocoDataset reads. It leaves out the objects of unknown
    pictures and categories, which is said in one line. A larger file is only scanned: it must start with ``{``, end
    with ``}`` (a download that broke off does not) and contain the keys of pictures and categories.

    Returns:
        How many objects there are in the file; None where it is only scanned.

    Raises:
        AnnotationError: as `read_annotations`.
    """
    check_file(path, AnnotationError, EXPECTED)
    if path.stat().st_size < FULL_PARSE_BELOW:
        return _check_for_training(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        if not text[:1024].lstrip().startswith(b"{"):
            raise AnnotationError(f"{path}: not a JSON object, it does not start with '{{'; {EXPECTED}")
        if not text[-1024:].rstrip().endswith(b"}"):
            raise AnnotationError(f"{path}: broken off, it does not end with '}}'; {EXPECTED}")
        missing = [key for key in ("images", "categories") if text.find(b'"%s"' % key.encode()) < 0]
    if missing:
        raise AnnotationError(f"{path}: not COCO, {' and '.join(missing)} is missing; {EXPECTED}")
    return None


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


def _read_lists(path: Path) -> dict[str, Any]:
    dataset = load_json(path, AnnotationError, EXPECTED)
    if not isinstance(dataset, dict):
        raise AnnotationError(f"{path}: holds a {type(dataset).__name__}; {EXPECTED}")
    dataset.setdefault("annotations", [])  # COCO's own files of test pictures have none
    missing = [key for key in TRAINING if not isinstance(dataset.get(key), list)]
    if missing:
        raise AnnotationError(f"{path}: not COCO, the list {' and the list '.join(missing)} is missing; {EXPECTED}")
    return dataset


def _check_for_training(path: Path) -> int:
    dataset = _read_lists(path)
    _check_pictures_and_categories(path, dataset, TRAINING)
    require_fields(dataset["annotations"], TRAINING["annotations"], f"{path}: annotations", AnnotationError)
    ids = {"image_id": "images", "category_id": "categories"}
    known = {field: {entry["id"] for entry in dataset[key]} for field, key in ids.items()}

    def is_left_out(annotation: dict[str, Any]) -> bool:
        values = [(annotation[field], known[field]) for field in ids]
        return any(not isinstance(value, list | dict) and not is_known(value, among) for value, among in values)

    every = len(dataset["annotations"])
    dataset["annotations"] = [annotation for annotation in dataset["annotations"] if not is_left_out(annotation)]
    if len(dataset["annotations"]) < every:
        logger.warning(
            "%s: %d of %d annotations belong to no picture or category of the file, and are left out",
            *(path, every - len(dataset["annotations"]), every),
        )
    _check_list(path, dataset, "annotations", TRAINING["annotations"])
    return len(dataset["annotations"])


def _check_pictures_and_categories(path: Path, dataset: dict[str, Any], fields: Mapping[str, Sequence[str]]) -> None:
    for key in ("images", "categories"):
        if not dataset[key]:
            raise AnnotationError(f"{path}: {key} is empty; {EXPECTED}")
        _check_list(path, dataset, key, fields[key])
    if "name" in fields["categories"]:
        # Results are told apart by category name, and mmdet finds a category's id by its name.
        _require_unique(path, "category name", [category["name"] for category in dataset["categories"]])


def _check_list(path: Path, dataset: dict[str, Any], key: str, fields: Sequence[str]) -> None:
    require_fields(dataset[key], fields, f"{path}: {key}", AnnotationError)
    _require_ids(path, key, [entry["id"] for entry in dataset[key]])
    check_entries(dataset[key], fields, dataset, f"{path}: {key}", AnnotationError)


def _require_ids(path: Path, key: str, ids: list[Any]) -> None:
    # Pictures may be named by text instead, but pycocotools sorts their ids, so they must be of one kind.
    kinds = {type(value) for value in ids}
    if not (kinds <= {int} or (key == "images" and kinds <= {str})):
        wrong = next(value for value in ids if type(value) is not int)
        raise AnnotationError(f"{path}: {key} has the id {shown(wrong)}; expected integers")
    if kinds == {int} and not -(2**63) <= min(ids) <= max(ids) < 2**63:
        raise AnnotationError(f"{path}: {key} has the id {shown(max(ids, key=abs))}; expected integers of 64 bits")
    _require_unique(path, f"{key} id", ids)


def _require_unique(path: Path, what: str, values: list[Any]) -> None:
    for value, count in Counter(values).most_common(1):
        if count > 1:
            raise AnnotationError(f"{path}: the {what} {shown(value)} is given {count} times; each must be given once")
