"""COCO annotation files, checked as a whole: what is wrong with one is said once, before anything is built on it."""

import json
import logging
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


def read_annotations(path: Path, fields: Mapping[str, Sequence[str]] = TRAINING, strict: bool = True) -> dict[str, Any]:
    """Read and check a COCO instance annotation file.

    Args:
        path: a JSON file with ``images``, ``categories`` and, where there are objects, ``annotations``.
        fields: of each of the three, which fields the reader needs: each entry must have them, with values as in COCO's
            format (bbox as x, y, width, height in pixels, area in square pixels). The id is always among them.
        strict: whether objects of a picture or category that is not in the file are an error; otherwise they are left
            out, as mmdet's CocoDataset does, and it is said.

    Returns:
        The file's content; ``annotations`` and their ``iscrowd``, which may be missing, are empty and 0 there.

    Raises:
        AnnotationError: no such file, not JSON, not COCO (says which part is missing), an entry that lacks a field that
            is needed, or has another value than COCO's format allows, an id given twice.
    """
    dataset = load_json(path, AnnotationError, EXPECTED)
    if not isinstance(dataset, dict):
        raise AnnotationError(f"{path}: holds a {type(dataset).__name__}; {EXPECTED}")
    dataset.setdefault("annotations", [])  # COCO's own files of test pictures have none
    missing = [key for key in TRAINING if not isinstance(dataset.get(key), list)]
    if missing:
        raise AnnotationError(f"{path}: not COCO, the list {' and the list '.join(missing)} is missing; {EXPECTED}")
    for annotation in dataset["annotations"]:
        if isinstance(annotation, dict):
            annotation.setdefault("iscrowd", 0)
    for key in ("images", "categories", "annotations"):
        if key == "annotations" and not strict:
            _leave_out_strangers(path, dataset, fields[key])
        elif key != "annotations" and not dataset[key]:
            raise AnnotationError(f"{path}: {key} is empty; {EXPECTED}")
        _check_list(path, dataset, key, fields[key])
    return dataset


def check_annotation_file(path: Path) -> int | None:
    """Refuse a file that a run could not use, cheaply enough to do it before each training.

    A file below 64 MB is checked in full, for what mmdet's CocoDataset reads. A larger file must start with ``{`` and
    end with ``}``, as a download that broke off does not.

    Returns:
        How many objects there are in the file; None where it is not parsed.

    Raises:
        AnnotationError: as `read_annotations`.
    """
    require_file(path, AnnotationError, EXPECTED)
    size = path.stat().st_size
    if size < FULL_PARSE_BELOW:
        return len(read_annotations(path, strict=False)["annotations"])
    with path.open("rb") as file:
        first = file.read(1024).lstrip()[:1]
        file.seek(max(size - 1024, 0))
        last = file.read().rstrip()[-1:]
    if first + last != b"{}":
        raise AnnotationError(f"{path}: broken off, or no JSON object from '{{' to '}}'; {EXPECTED}")
    return None


def require_file(path: Path, error: type[ValueError], expected: str) -> None:
    """Raise ``error`` unless ``path`` is a file; from a pipe nothing may ever come."""
    if not path.is_file():
        raise error(f"{path}: {'is not a regular file' if path.exists() else 'no such file'}; {expected}")


def load_json(path: Path, error: type[ValueError], expected: str) -> Any:
    """The content of a JSON file; raise ``error`` where there is none."""
    require_file(path, error, expected)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as reason:
        raise error(f"{path}: not JSON ({reason}); {expected}") from reason


def _leave_out_strangers(path: Path, dataset: dict[str, Any], fields: Sequence[str]) -> None:
    every = dataset["annotations"]
    require_fields(every, fields, f"{path}: annotations", AnnotationError)
    known = {"image_id": {image["id"] for image in dataset["images"]}}
    known["category_id"] = {category["id"] for category in dataset["categories"]}
    dataset["annotations"] = [
        annotation
        for annotation in every
        # A list or dict for an id ends mmdet's reading, so that is left for the check.
        if all(isinstance(annotation[key], list | dict) or is_known(annotation[key], ids) for key, ids in known.items())
    ]
    left_out = len(every) - len(dataset["annotations"])
    if left_out:
        said = "%s: %d of %d annotations belong to no picture or category of the file, and are left out"
        logger.warning(said, path, left_out, len(every))


def _check_list(path: Path, dataset: dict[str, Any], key: str, fields: Sequence[str]) -> None:
    check_entries(dataset[key], fields, dataset, f"{path}: {key}", AnnotationError)
    ids = [entry["id"] for entry in dataset[key]]
    # pycocotools sorts them, so those of pictures, which may be text, must be of one kind.
    if not (key == "images" and all(isinstance(value, str) for value in ids)):
        for value in ids:
            if type(value) is not int or not -(2**63) <= value < 2**63:
                raise AnnotationError(f"{path}: {key} has the id {shown(value)}; expected integers of 64 bits")
    # Results are told apart by category name, and mmdet finds a category's id by its name.
    names = [entry["name"] for entry in dataset[key]] if "name" in fields else []
    for what, values in ((f"{key} id", ids), ("category name", names)):
        for value, count in Counter(values).most_common(1):
            if count > 1:
                raise AnnotationError(f"{path}: the {what} {shown(value)} is given {count} times; expected it once")
