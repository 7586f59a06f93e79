"""Make a small detection data set that is drawn, not downloaded: six shapes, told apart by their outline alone.

Every picture comes from its own random stream, seeded by (seed, split, number of the picture), so a picture does not
depend on how many others are made, and the same seed gives the same pixels and the same JSON everywhere. A shape is
drawn once, as a small map of coverage (a *sprite*), from its signed distance; where it lands, it covers what was drawn
before. Annotations describe what remains visible. The folder is made beside its final place and moved there when it is
complete, with the recipe that it was made by.
"""

import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable
from numbers import Integral
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

# In alphabetical order, which is how a classification data set numbers the folders of its classes.
CATEGORIES = ("circle", "cross", "ring", "square", "star", "triangle")

# Part of the recipe: counts up when the same arguments give other pictures, so that no older folder is taken.
FORMAT_VERSION = 1
MAKER = "ce_mm.datasets.make_shapes"  # as older folders have it in their recipes
RECIPE = "recipe.json"

MIN_SIDE = 96
MAX_OBJECTS = 6
# The size of an object is the square root of its area; here as a part of the shorter side of the picture.
PICTURE_SIZES = (1 / 8, 0.75)
CROP_SIZES = (0.2, 0.7)
CROP_SIDE = 64
# No object is placed where it would leave a smaller part than this of another one visible.
MIN_VISIBLE = 0.6
PLACING_ATTEMPTS = 10

#: The files of a data set, from its folder.
_OURS = re.compile(
    rf"recipe\.json|annotations/(train|val)\.json|(crops/(train|val)/({'|'.join(CATEGORIES)})|train|val)/\d{{6,}}\.png"
)

_STREAMS = {"train": 0, "val": 1, "crops/train": 2, "crops/val": 3}


def make_shapes(
    root: str | Path,
    num_train: int = 500,
    num_val: int = 100,
    size: tuple[int, int] = (192, 160),
    num_crops: int = 1200,
    seed: int = 0,
) -> Path:
    """Make the data set in the folder ``root``, or find it there, made by the same recipe.

    Layout: ``train/*.png``, ``val/*.png`` and ``annotations/{train,val}.json`` (COCO instances; masks in RLE and boxes
    are those of the visible part) for a detector; ``crops/{train,val}/<category>/*.png``, 64×64 with one object each,
    for a classifier.

    Args:
        root: the folder to make. One that is there and not empty is left alone. One process at a time may make the same
            folder.
        num_train: number of training pictures.
        num_val: number of validation pictures.
        size: (width, height) of a picture in pixels.
        num_crops: number of training crops, dealt evenly to the categories; a fifth as many are made for validation.
        seed: of all random choices.

    Returns:
        ``root`` as an absolute path.

    Raises:
        ValueError: an argument has a wrong value.
        FileExistsError: ``root`` is there and was not made here, or by another recipe.
    """
    recipe = {"maker": MAKER, "format": FORMAT_VERSION, **_checked(num_train, num_val, size, num_crops, seed)}
    root = Path(root).expanduser().resolve()
    made = _recipe_of(root) == recipe
    if not made:
        _refuse_to_replace(root)
    making = root.with_name(f".{root.name}.making")
    _remove(making)
    if made:
        return root
    making.mkdir(parents=True)
    try:
        # First of all, since it is what allows the next run to remove this folder if this run is cut off.
        (making / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        _fill(making, recipe)
        making.rename(root)  # an empty folder may be there
    finally:
        _remove(making)
    return root


def _checked(num_train: int, num_val: int, size: tuple[int, int], num_crops: int, seed: int) -> dict:
    lowest = {"num_train": 1, "num_val": 1, "num_crops": len(CATEGORIES), "seed": 0}
    numbers = {"num_train": num_train, "num_val": num_val, "num_crops": num_crops, "seed": seed}
    for name, value in numbers.items():
        if not isinstance(value, Integral) or value < lowest[name]:
            raise ValueError(f"{name} must be a whole number of at least {lowest[name]}, not {value!r}")
    try:
        width, height = size
    except (TypeError, ValueError):
        raise ValueError(f"size must be a pair (width, height), not {size!r}") from None
    for name, value in (("width", width), ("height", height)):
        if not isinstance(value, Integral) or value < MIN_SIDE:
            raise ValueError(f"size: the {name} must be a whole number of at least {MIN_SIDE} pixels, not {value!r}")
    return {**{name: int(value) for name, value in numbers.items()}, "size": [int(width), int(height)]}


def _recipe_of(folder: Path) -> dict | None:
    try:
        return json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _refuse_to_replace(folder: Path) -> None:
    """Raise FileExistsError unless there is nothing at a place, or an empty folder."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    recipe = _recipe_of(folder)
    if isinstance(recipe, dict) and recipe.get("maker") == MAKER:
        arguments = ", ".join(f"{name} {value}" for name, value in recipe.items() if name != "maker")
        holds = f"holds shapes of another recipe ({arguments})"
    else:
        holds = f"exists and holds no {RECIPE} of {MAKER}"
    raise FileExistsError(f"{folder} {holds}, so it is left alone: name another folder, or move it away")


def _refuse_other_files(folder: Path) -> None:
    """Raise FileExistsError where a folder, which is to be removed, holds a file that was not made here."""
    for parent, _, files in os.walk(folder):
        for path in (Path(parent, name) for name in files):
            if not _OURS.fullmatch(path.relative_to(folder).as_posix()):
                raise FileExistsError(f"{path} was not made by {MAKER} and would be lost with {folder}: move it away")


def _remove(leftover: Path) -> None:
    """Remove a folder of this module's own naming, if it is there; cut off in the middle, it can be called again."""
    if not leftover.exists():
        return
    _refuse_other_files(leftover)
    children = list(leftover.iterdir())
    if children and leftover / RECIPE not in children:
        raise FileExistsError(f"{leftover} stands in the way and, without a {RECIPE}, is not ours: move it away")
    for child in children:
        if child.is_dir():
            shutil.rmtree(child)
    shutil.rmtree(leftover)  # the recipe goes last


def _fill(folder: Path, recipe: dict) -> None:
    pictures = {"train": recipe["num_train"], "val": recipe["num_val"]}
    crops = {"train": recipe["num_crops"], "val": max(len(CATEGORIES), recipe["num_crops"] // 5)}
    width, height = recipe["size"]
    (folder / "annotations").mkdir()
    with tqdm(total=sum(pictures.values()) + sum(crops.values()), desc="shapes", unit="picture") as progress:
        for split, count in pictures.items():
            (folder / split).mkdir()
            images, annotations = [], []
            for index in range(count):
                image = {"id": index + 1, "file_name": f"{index + 1:06d}.png", "width": width, "height": height}
                picture, objects = _draw_scene(_random_stream(recipe["seed"], split, index), width, height)
                _save(picture, folder / split / image["file_name"])
                images.append(image)
                for category, mask in objects:
                    annotations.append(_annotation(len(annotations) + 1, image["id"], category, mask))
                progress.update()
            document = {
                "info": {"description": f"ce_mm shapes, {split}", "version": str(FORMAT_VERSION)},
                "licenses": [],
                "images": images,
                "annotations": annotations,
                "categories": [
                    {"id": number, "name": category, "supercategory": "shape"}
                    for number, category in enumerate(CATEGORIES, 1)
                ],
            }
            (folder / "annotations" / f"{split}.json").write_text(json.dumps(document), encoding="utf-8")
        for split, count in crops.items():
            for category in CATEGORIES:
                (folder / "crops" / split / category).mkdir(parents=True)
            for index in range(count):
                category = CATEGORIES[index % len(CATEGORIES)]
                crop = _draw_crop(_random_stream(recipe["seed"], f"crops/{split}", index), category)
                _save(crop, folder / "crops" / split / category / f"{index + 1:06d}.png")
                progress.update()


def _random_stream(seed: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, _STREAMS[split], index])


def _save(picture: np.ndarray, path: Path) -> None:
    # PNG, because what a JPEG file gives back depends on the library that wrote it and on the one that reads it; in
    # noise there are no repetitions to search for, so Huffman coding alone gives smaller files in half the time.
    Image.fromarray(picture).save(path, compress_type=zlib.Z_HUFFMAN_ONLY)


def _annotation(number: int, image_id: int, category: str, mask: np.ndarray) -> dict:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": CATEGORIES.index(category) + 1,
        "segmentation": {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")},
        "area": int(mask.sum()),
        "bbox": [
            int(columns[0]),
            int(rows[0]),
            int(columns[-1] - columns[0] + 1),
            int(rows[-1] - rows[0] + 1),
        ],
        "iscrowd": 0,
    }


def _draw_scene(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """A picture (H, W, 3), uint8, and its objects: category and visible mask (H, W), bool."""
    canvas, tones = _draw_background(rng, width, height)
    owner = np.zeros((height, width), dtype=np.uint8)  # 0: background; k: the k-th object
    categories: list[str] = []
    full, visible = np.zeros(1), np.zeros(1)  # the areas of each, k from 1
    for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
        category = CATEGORIES[rng.integers(len(CATEGORIES))]
        sprite = _draw_sprite(rng, category, width, height, PICTURE_SIZES)
        colour = _draw_colour(rng, tones)
        solid = sprite > 0.5
        for _ in range(PLACING_ATTEMPTS):
            window = _draw_window(rng, sprite, width, height)
            left = visible - np.bincount(owner[window][solid], minlength=len(visible))
            if np.all(left[1:] >= MIN_VISIBLE * full[1:]):
                categories.append(category)
                owner[window][solid] = len(categories)
                full, visible = np.append(full, solid.sum()), np.append(left, solid.sum())
                _paint(canvas[:, *window], sprite, colour)
                tones = np.vstack([tones, colour])
                break
    objects = [(category, owner == k) for k, category in enumerate(categories, 1)]
    return _with_noise(rng, canvas), objects


def _draw_crop(rng: np.random.Generator, category: str) -> np.ndarray:
    """A picture (64, 64, 3), uint8, of one object."""
    canvas, tones = _draw_background(rng, CROP_SIDE, CROP_SIDE)
    sprite = _draw_sprite(rng, category, CROP_SIDE, CROP_SIDE, CROP_SIZES)
    window = _draw_window(rng, sprite, CROP_SIDE, CROP_SIDE)
    _paint(canvas[:, *window], sprite, _draw_colour(rng, tones))
    return _with_noise(rng, canvas)


def _draw_background(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """A canvas (3, H, W), float64 in 0 to 255: a blend of two tones (2, 3) by a gradient, smooth noise and stripes."""
    y, x = (side / max(width, height) for side in np.ogrid[:height, :width])

    def slope() -> np.ndarray:
        angle = rng.uniform(0, 2 * math.pi)
        return x * math.cos(angle) + y * math.sin(angle)

    gradient = slope()
    gradient = (gradient - gradient.min()) / (gradient.max() - gradient.min())
    noise = _stretch(_stretch(rng.random((rng.integers(3, 9), rng.integers(3, 9))), height).T, width).T
    stripes = np.abs(2 * ((slope() * rng.uniform(3, 24) + rng.random()) % 1) - 1)
    shares = rng.random(3) ** 2 + 0.05
    shares /= shares.sum()
    blend = shares[0] * gradient + shares[1] * noise + shares[2] * stripes
    first = rng.uniform(0, 255, 3)
    second = np.clip(first + rng.uniform(-90, 90, 3), 0, 255)
    return first[:, None, None] + (second - first)[:, None, None] * blend, np.stack([first, second])


def _stretch(values: np.ndarray, length: int) -> np.ndarray:
    """(n, m) to (length, m), smoothly."""
    position = np.linspace(0, len(values) - 1, length)
    below = np.minimum(position.astype(int), len(values) - 2)
    share = (position - below)[:, None]
    share = share * share * (3 - 2 * share)
    return values[below] * (1 - share) + values[below + 1] * share


def _draw_colour(rng: np.random.Generator, taken: np.ndarray) -> np.ndarray:
    """A colour (3,) well away from those taken (n, 3), or two things of one colour would melt into one."""
    candidates = rng.uniform(0, 255, (8, 3))
    distances = np.abs(candidates[:, None] - taken).sum(axis=-1)
    return candidates[distances.min(axis=1).argmax()]


def _draw_window(rng: np.random.Generator, sprite: np.ndarray, width: int, height: int) -> tuple[slice, slice]:
    top = rng.integers(height - sprite.shape[0] + 1)
    left = rng.integers(width - sprite.shape[1] + 1)
    return slice(top, top + sprite.shape[0]), slice(left, left + sprite.shape[1])


def _paint(canvas: np.ndarray, sprite: np.ndarray, colour: np.ndarray) -> None:
    canvas += sprite * (colour[:, None, None] - canvas)


def _with_noise(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    noisy = np.rint(canvas) + rng.integers(-8, 9, canvas.shape, dtype=np.int8)
    return np.ascontiguousarray(np.clip(noisy, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _draw_sprite(
    rng: np.random.Generator, category: str, width: int, height: int, sizes: tuple[float, float]
) -> np.ndarray:
    """The coverage (h, w), float64 in 0 to 1, of a shape of random size and angle that fits into the picture."""
    # Even steps of the root: between even sizes (few small objects) and even ratios (few large ones).
    smallest, largest = (math.sqrt(part * min(width, height)) for part in sizes)
    size = rng.uniform(smallest, largest) ** 2
    angle = rng.uniform(0, 2 * math.pi)
    shift = rng.uniform(-0.5, 0.5, 2)
    while True:
        coverage = _coverage(category, size, angle, shift)
        if coverage.shape[0] <= height and coverage.shape[1] <= width:
            return coverage
        # A pointed shape reaches further than a compact one of the same area.
        size *= 0.99 * min(height / coverage.shape[0], width / coverage.shape[1])


def _coverage(category: str, size: float, angle: float, shift: np.ndarray) -> np.ndarray:
    reach = math.ceil(0.9 * size) + 2  # no shape reaches further from its centre than 0.9 times the root of its area
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    x, y = (x - shift[0]) / size, (y - shift[1]) / size
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    coverage = np.clip(0.5 - size * _DISTANCES[category](along, across), 0, 1)
    rows, columns = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
    return coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


# Signed distance to the outline of a shape of area 1 about the origin, negative inside: f(x, y) -> distance.
_Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _round(hole: float) -> _Distance:
    """A disc, or a ring whose hole has the given part of its radius."""
    radius = 1 / math.sqrt(math.pi * (1 - hole**2))

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        r = np.hypot(x, y)
        return np.maximum(r - radius, hole * radius - r) if hole else r - radius

    return distance


def _pointed(points: int, notch: float) -> _Distance:
    """A star whose notches lie at the given part of its radius; notches on the sides of a polygon make the polygon."""
    half = math.pi / points
    radius = 1 / math.sqrt(points * notch * math.sin(half))
    # The side from the tip (radius, 0) to the next notch; all other sides are its mirror images.
    side = np.array([notch * math.cos(half) - 1, notch * math.sin(half)])
    normal = np.array([side[1], -side[0]]) / math.hypot(*side)

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        tips = [2 * half * k for k in range(points // 2 + 1)]  # of the upper half; the lower one is its mirror image
        along = np.max([x * math.cos(tip) + np.abs(y) * math.sin(tip) for tip in tips], axis=0)
        across = np.sqrt(np.maximum(x * x + y * y - along * along, 0))
        return normal[0] * (along - radius) + normal[1] * across

    return distance


def _cross(arm: float) -> _Distance:
    """Two bars across each other whose width is the given part of their length."""
    length = 1 / math.sqrt(arm * (2 - arm))

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = np.abs(x), np.abs(y)
        return np.maximum(np.maximum(x, y) - length / 2, np.minimum(x, y) - arm * length / 2)

    return distance


_DISTANCES: dict[str, _Distance] = {
    "circle": _round(hole=0),
    "cross": _cross(arm=0.36),
    "ring": _round(hole=0.55),
    "square": _pointed(4, notch=math.cos(math.pi / 4)),
    "star": _pointed(5, notch=0.45),
    "triangle": _pointed(3, notch=math.cos(math.pi / 3)),
}
