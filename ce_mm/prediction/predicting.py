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
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmdet.structures import DetDataSample
from PIL import Image
from tqdm import tqdm

from ce_mm.files import replacing
from ce_mm.prediction.detector import Detector, Picture
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
            there from another time is replaced; a file that is no result is not.
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
    todo = list(zip(found, place(found, out), strict=True))
    written, objects, failed = {}, 0, []
    detector = Detector(config, checkpoint, device)
    with tqdm(total=len(todo), desc="pictures", disable=None) as progress:
        for first in range(0, len(todo), batch_size):
            batch = []
            for path, result in todo[first : first + batch_size]:
                try:
                    batch.append((path, result, detector.read(path)))
                except PictureError as error:
                    failed.append(str(error))
                    progress.update()
            for path, result, picture, sample in _detect(detector, batch):
                progress.update()
                if isinstance(sample, str):
                    failed.append(sample)
                    continue
                entries = detector.describe(sample, score_threshold)
                if not all(math.isfinite(number) for entry in entries for number in entry["bbox"]):
                    failed.append(f"{path}: the network finds boxes that are not finite; look at the checkpoint")
                    continue
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
    return Report(written, objects, failed)


def _detect(
    detector: Detector, batch: list[tuple[Path, Path, Picture]]
) -> Iterator[tuple[Path, Path, Picture, DetDataSample | str]]:
    """The batch with what is found in each picture, or a text that says why the network fails on it."""
    reason = None
    try:
        samples = detector.detect([picture for _, _, picture in batch]) if batch else []
    except Exception as error:  # out of memory, for example, or whatever else the network's code raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    if reason is None:
        for entry, sample in zip(batch, samples, strict=True):
            yield *entry, sample
    elif len(batch) == 1:
        yield *batch[0], f"{batch[0][0]}: the network fails on this picture ({reason})"
    else:  # not while the error is handled, as it holds what the failed pass had in memory
        for entry in batch:
            yield from _detect(detector, [entry])


def _write(place: Path, drawn: np.ndarray, numbers: dict) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    target = Path(f"{place}.json")
    # Both are written before either is moved, so that hardly a picture is left alone, which is taken for no result.
    with replacing(target) as unfinished_numbers, replacing(Path(f"{place}.jpg")) as unfinished:
        unfinished_numbers.write_text(json.dumps(numbers, allow_nan=False) + "\n", encoding="utf-8")
        Image.fromarray(drawn).save(unfinished, format="JPEG", quality=95, subsampling=0)
    return target
