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
    batch_size: int = 1,
) -> Report:
    """Run a detector on pictures, and write what it finds.

    Args:
        config, checkpoint, device: as for :class:`~ce_mm.prediction.detector.Detector`.
        pictures: files, folders and patterns, as for :func:`~ce_mm.prediction.finding.find_pictures`.
        out: folder for the results, made if need be, where :func:`~ce_mm.prediction.finding.place` says; what lies
            there from another time is replaced.
        score_threshold: objects with a score above it count.
        batch_size: pictures per pass.

    Raises:
        ValueError: an argument cannot be used; nothing has been written then.
        OSError: a result cannot be written; those before it are.
    """
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"the score threshold must be from 0 to 1, as the scores are, got {score_threshold}")
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    found = find_pictures(pictures, out)
    places = place(found, out)
    written, objects, failed = {}, 0, []
    detector = Detector(config, checkpoint, device)
    with tqdm(total=len(found), desc="pictures", disable=None) as progress:
        for first in range(0, len(found), batch_size):
            batch = {}
            for path, result in list(zip(found, places, strict=True))[first : first + batch_size]:
                try:
                    batch[path, result] = detector.read(path)
                except PictureError as error:
                    failed.append(str(error))
                    progress.update()
            samples = detector.detect(list(batch.values())) if batch else []
            for ((path, result), picture), sample in zip(batch.items(), samples, strict=True):
                entries = detector.describe(sample, score_threshold)
                height, width = picture.image.shape[:2]
                written[path] = _write(
                    result,
                    detector.draw(picture, sample, score_threshold),
                    dict(
                        file_name=path.as_posix(),
                        width=width,
                        height=height,
                        score_threshold=score_threshold,
                        objects=entries,
                    ),
                )
                objects += len(entries)
                progress.update()
    return Report(written, objects, failed)


def _write(place: Path, drawn: np.ndarray, numbers: dict) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(f"{place}.jpg")) as unfinished:
        Image.fromarray(drawn).save(unfinished, format="JPEG", quality=95, subsampling=0)
    target = Path(f"{place}.json")
    with replacing(target) as unfinished:
        unfinished.write_text(json.dumps(numbers, allow_nan=False) + "\n", encoding="utf-8")
    return target
