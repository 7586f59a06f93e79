"""A small COCO set made by hand, and detections made by jittering the ground truth of real pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO

Dataset = dict[str, Any]
Entry = dict[str, Any]


def rectangle(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    """The mask of a rectangle in a picture of 100×80 pixels, as compressed run lengths (text)."""
    bitmap = np.zeros((80, 100), np.uint8, order="F")
    bitmap[y : y + height, x : x + width] = 1
    mask = run_lengths.encode(bitmap)
    return {"size": mask["size"], "counts": mask["counts"].decode()}


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def dataset() -> Dataset:
    """Two pictures; three objects of two categories, whose ids are not in order and have gaps."""
    boxes = [(1, 7, (10, 10, 30, 20)), (1, 3, (50, 40, 40, 35)), (2, 7, (5, 30, 60, 30))]
    return {
        "images": [{"id": id, "width": 100, "height": 80, "file_name": f"{id}.jpg"} for id in (1, 2)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {
                "id": index,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": list(map(float, box)),
                "area": float(box[2] * box[3]),
                "iscrowd": 0,
                "segmentation": rectangle(*box),
            }
            for index, (image_id, category_id, box) in enumerate(boxes, 1)
        ],
    }


@pytest.fixture
def annotations(tmp_path: Path, dataset: Dataset) -> Path:
    return write_json(tmp_path / "annotations.json", dataset)


@pytest.fixture
def detections(dataset: Dataset) -> list[Entry]:
    """The objects of ``dataset`` as results, with a score of its own for each."""
    return [
        {key: annotation[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
        | {"score": 1 / (annotation["id"] + 1)}
        for annotation in dataset["annotations"]
    ]


@pytest.fixture
def write_results(tmp_path: Path) -> Callable[[list[Entry]], Path]:
    """Writes results as JSON."""
    return lambda entries: write_json(tmp_path / "results.json", entries)


@pytest.fixture(scope="session")
def real_annotations(shared: Path) -> Path:
    return shared / "data/coco_mini/annotations/instances_train2017.json"


@pytest.fixture(scope="session")
def jittered(real_annotations: Path) -> list[Entry]:
    """Moved boxes and masks of the real objects, some missed, some seen twice, some with another category.

    Scores are all different. A mask is moved on its own, by whole pixels, and is compressed run lengths (text).
    """
    random = np.random.default_rng(20)
    truth = COCO()
    truth.dataset = json.loads(real_annotations.read_text())
    truth.createIndex()
    category_ids = truth.getCatIds()
    entries = []
    for annotation in truth.dataset["annotations"]:
        for _ in range(random.choice([0, 1, 2], p=[0.15, 0.65, 0.2])):
            x, y, width, height = annotation["bbox"]
            shift = random.normal(0, 0.06, 4) * (width, height, width, height)
            box = [x + shift[0], y + shift[1], max(width + shift[2], 1.0), max(height + shift[3], 1.0)]
            rows, columns = (random.normal(0, 0.04, 2) * (height, width)).round().astype(int)
            bitmap = np.roll(truth.annToMask(annotation), (rows, columns), (0, 1))
            mask = run_lengths.encode(np.asfortranarray(bitmap))
            other = random.random() < 0.1
            entries.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": int(random.choice(category_ids)) if other else annotation["category_id"],
                    "bbox": [float(value) for value in box],
                    "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
                    "score": float(random.random()),
                }
            )
    return entries
