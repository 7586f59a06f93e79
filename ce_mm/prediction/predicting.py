"""Pictures in, and for each a drawn one and its numbers out; a picture that cannot be used stops none of the others.

    OUT/cat.jpg     the picture with boxes, masks, names and scores
    OUT/cat.json    {"file_name": as it was given, "width": W, "height": H, "score_threshold": t,
                     "objects": [{"label": 0, "name": "circle", "score": 0.98, "bbox": [x1, y1, x2, y2],
                                  "mask": {"size": [H, W], "counts": "..."}}, ...]}

Objects are those with a score above the threshold, which are the drawn ones. Boxes are in pixels of the upright
picture, from its upper left corner; masks are COCO's run lengths, for ``pycocotools.mask.decode``; a detector without
masks leaves them out. Both files are there whole or not at all, the JSON last.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ce_mm.files import replacing
from ce_mm.prediction.detector import Detector
from ce_mm.prediction.finding import find_pictures, place
from ce_mm.transforms import PictureError


@dataclass(frozen=True)
class Report:
    """What became of the pictures."""

    written: dict[Path, Path]
    """Picture -> its JSON file."""
    objects: int
    """How many were found in all."""
    failed: list[str]
    """A text for each picture that could not be used, which names it."""


def predict(
    config: str,
    checkpoint: str,
    pictures: list[str | Path],
    out: Path,
    score_threshold: float = 0.3,
    device: str | None = None,
) -> Report:
    """Run a detector on pictures, one at a time, and write what it finds.

    Args:
        config, checkpoint, device: as for :class:`~ce_mm.prediction.detector.Detector`.
        pictures: files, folders and patterns, as for :func:`~ce_mm.prediction.finding.find_pictures`.
        out: folder for the results, made if need be, where :func:`~ce_mm.prediction.finding.place` says; what lies
            there from another time is replaced; a file that is no result is not.
        score_threshold: objects with a score above it count.

    Raises:
        ValueError: an argument cannot be used; nothing has been written then.
        OSError: a result cannot be written; those before it are.
    """
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"the score threshold must be from 0 to 1, as the scores are, got {score_threshold}")
    found = find_pictures(pictures, out)
    places = place(found, out)
    detector = Detector(config, checkpoint, device)
    written, total, failed = {}, 0, []
    for path, result in tqdm(list(zip(found, places, strict=True)), "pictures", disable=None):
        try:
            objects, drawn = detector.detect(path, score_threshold)
        except PictureError as error:
            failed.append(str(error))
            continue
        height, width = drawn.shape[:2]
        numbers = dict(
            file_name=path.as_posix(), width=width, height=height, score_threshold=score_threshold, objects=objects
        )
        written[path] = _write(result, drawn, numbers)
        total += len(objects)
    return Report(written, total, failed)


def _write(place: Path, drawn: np.ndarray, numbers: dict) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    target = Path(f"{place}.json")
    # Both are written before either is moved, so that hardly a picture is left alone, which is taken for no result.
    with replacing(target) as unfinished_numbers, replacing(Path(f"{place}.jpg")) as unfinished:
        unfinished_numbers.write_text(json.dumps(numbers, allow_nan=False) + "\n", encoding="utf-8")
        Image.fromarray(drawn).save(unfinished, format="JPEG", quality=95, subsampling=0)
    return target
