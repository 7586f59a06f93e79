"""One entry of an annotation or results file: what may stand in it, so that pycocotools meets nothing else.

pycocotools reads boxes and masks in C and trusts them: run lengths that do not cover the picture never end, a
coordinate that is no number or lies far away ends the process. And what belongs to no picture or category it drops
without a word. So both kinds of files go through this one check, entry by entry, before pycocotools sees any of them.
"""

import re
import reprlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

#: pycocotools keeps five points for each pixel of an outline, and their places in 32 bits.
FARTHEST = 10**7
#: It reads run lengths of up to 30 bits with their sign.
MOST_PIXELS = 2**29
#: COCO's compressed run lengths: six bits a character from '0' on, the highest says that the number goes on.
#: pycocotools reads beyond the end of a string whose last number goes on, and no number of more than six characters.
_COMPRESSED = re.compile("([P-o]{0,5}[0-O])+")
_MASK = "polygons (each a list of x, y, x, y, … in pixels, three points or more) or run lengths (size and counts)"

#: A value in a message: not more of it than can be read.
_short = reprlib.Repr()
_short.maxlevel = 2
shown = _short.repr


def is_number(value: Any) -> bool:
    """Whether ``value`` is an int or float that is neither NaN nor infinite, nor an int too large for a float."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def require_fields(entries: Iterable[Any], fields: Sequence[str], where: str, error: type[ValueError]) -> None:
    """Raise ``error`` for the first of ``entries`` that is no object with all ``fields``; ``where`` names the list."""
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise error(f"{where}[{index}] is a {type(entry).__name__}; expected an object with {', '.join(fields)}")
        missing = [field for field in fields if field not in entry]
        if missing:
            raise error(f"{where}[{index}] lacks {' and '.join(missing)}; each entry must have {', '.join(fields)}")


def check_entries(
    entries: Sequence[Any], fields: Sequence[str], dataset: dict[str, Any], where: str, error: type[ValueError]
) -> None:
    """Raise ``error`` for the first entry that lacks a field, or has a value there that COCO's format does not allow.

    Args:
        entries: pictures, categories, objects or results.
        fields: which values to look at, a segmentation after the image_id; of fields not known here any value will do.
        dataset: what the annotation file holds. Its images and categories are those that an entry may belong to; for a
            segmentation the images need height and width.
        where: what to call the list in the error.
    """
    require_fields(entries, fields, where, error)
    images = {image["id"]: image for image in dataset["images"]} if "image_id" in fields else {}
    categories = {category["id"] for category in dataset["categories"]} if "category_id" in fields else {}
    for index, entry in enumerate(entries):
        for field in fields:
            fault = _fault(field, entry, images, categories)
            if fault:
                key = "id" if "id" in entry else "image_id"
                of = f"{where}[{index}] ({key} {shown(entry[key])})"
                raise error(f"{of}: the {field} {shown(entry[field])} {fault}")


def is_known(value: Any, ids: Iterable[Any]) -> bool:
    """Whether ``value`` is one of ``ids``, also where it is nothing that could be one."""
    return isinstance(value, int | float | str) and value in ids


def _fault(field: str, entry: dict[str, Any], images: dict[Any, Any], categories: Iterable[Any]) -> str | None:
    value = entry[field]
    match field:
        case "image_id" | "category_id":
            if not is_known(value, images if field == "image_id" else categories):
                return "is not in the annotation file; expected an id of its pictures and categories"
        case "bbox":
            if not (isinstance(value, list) and len(value) == 4 and all(map(is_number, value))):
                return "is no box; expected four finite numbers: x, y, width, height in pixels"
        case "area" | "score" | "width" | "height":
            if not is_number(value):
                return "is not a finite number"
        case "iscrowd":
            if not (isinstance(value, int | float) and value in (0, 1)):
                return "is neither 0 nor 1"
        case "name" | "file_name":
            if not isinstance(value, str if field == "file_name" else str | int):
                return "is no name"
        case "segmentation":
            return _mask_fault(value, images[entry["image_id"]])
    return None


def _mask_fault(mask: Any, image: dict[str, Any]) -> str | None:
    height, width = image["height"], image["width"]
    if not (type(height) is type(width) is int and min(height, width) > 0 and height * width <= MOST_PIXELS):
        has = f"belongs to a picture of height {shown(height)} and width {shown(width)}"
        return f"{has}; expected whole numbers from 1 on, and at most {MOST_PIXELS} pixels"
    if isinstance(mask, list):
        return _polygons_fault(mask)
    if not isinstance(mask, dict):
        return f"is no mask; expected {_MASK}"
    size = mask.get("size")
    is_size = isinstance(size, list | tuple) and all(type(number) is int for number in size)
    if not is_size or list(size) != [height, width]:
        return f"has the size {shown(size)}; expected the picture's, {[height, width]}"
    covered = _covered(mask.get("counts"))
    if covered is None:
        return "has damaged counts; expected whole numbers from 0 on, or what pycocotools.mask.encode returns"
    if covered != height * width:
        return f"has run lengths of {covered} pixels in all; expected the picture's {height * width}"
    return None


def _polygons_fault(polygons: list[Any]) -> str | None:
    are_points = (isinstance(p, list) and len(p) % 2 == 0 and all(map(is_number, p)) for p in polygons)
    # Three points are needed of the first polygon alone, by which pycocotools tells what it has got.
    if not all(are_points) or len(next(iter(polygons), [])) < 6:
        return f"is no mask; expected {_MASK}"
    for polygon in polygons:
        points = np.array(polygon, float).reshape(-1, 2)
        outline = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
        if max(outline, np.abs(points).max(initial=0)) > FARTHEST:
            return f"has points or an outline of more than {FARTHEST} pixels; expected places in the picture"
    return None


def _covered(counts: Any) -> int | None:
    """The sum of run lengths, compressed or not; None where they are damaged."""
    if isinstance(counts, list):
        whole = all(is_number(length) and length >= 0 and length == int(length) for length in counts)
        return int(sum(counts)) if whole else None
    if isinstance(counts, bytes):
        counts = counts.decode("latin1")
    if not isinstance(counts, str) or not _COMPRESSED.fullmatch(counts):
        return None
    digits = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - ord("0")
    last = np.flatnonzero(digits < 32)
    number_of_digits = np.diff(last, prepend=-1)
    first = last - number_of_digits + 1
    place = np.arange(len(digits)) - np.repeat(first, number_of_digits)
    lengths = np.add.reduceat((digits & 31) << 5 * place, first)
    lengths -= (digits[last] & 16 > 0) << 5 * number_of_digits  # the highest bit of the last digit is the sign
    for start in (1, 2):  # from the third on, a length is written as the difference to the last but one
        lengths[start::2] = lengths[start::2].cumsum()
    return int(lengths.sum()) if lengths.min() >= 0 else None
