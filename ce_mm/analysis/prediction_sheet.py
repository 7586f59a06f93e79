"""What a detector sees: a sheet of pictures with predicted masks, boxes and scores, and the true outlines dashed."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from ce_mm.analysis import check_picture_path, save_figure, say_none
from ce_mm.analysis.label_places import Box, LabelPlaces, label_size
from ce_mm.evaluation.annotations import AnnotationError, read_annotations
from ce_mm.evaluation.results_file import read_results
from ce_mm.files import check_destination
from ce_mm.transforms import check_size, read_picture

# What is read here of each entry, for read_annotations.
FIELDS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "segmentation"),
    "categories": ("id", "name"),
}
COLUMNS = 4
PANEL_WIDTH = 3.6  # inches, at 120 pixels each: more than a small picture has
FONT_SIZE = 6.5  # of labels


def draw_prediction_sheet(
    annotations: Path,
    image_root: Path,
    results: Path,
    out: Path,
    num_images: int = 12,
    score_threshold: float = 0.5,
    classes: Sequence[str] | None = None,
) -> None:
    """Draw the predictions for the first pictures of an annotation file that have objects.

    Args:
        annotations: COCO instance annotations with masks, see `read_annotations`.
        image_root: folder that the file names in the annotations start from.
        results: predictions with masks; see `read_results`, for ``classes`` too.
        out: the picture to write.
        num_images: how many pictures at most.
        score_threshold: the lowest score that is drawn, 0 to 1.

    Raises:
        ValueError: a wrong argument, or an annotation file without objects; as AnnotationError, ResultsError or
            PictureError, files that cannot be used or do not fit; as DestinationError, ``out`` is one of them.
    """
    check_picture_path(out, (annotations, results))
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, not {num_images}")
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"score_threshold must be from 0 to 1, as the scores are, not {score_threshold}")
    dataset = read_annotations(annotations, FIELDS)
    files = {image["id"]: image_root / image["file_name"] for image in dataset["images"]}
    check_destination(out, files.values())
    results_of, objects_of = defaultdict(list), defaultdict(list)
    for entry in sorted(read_results(results, dataset, ("segm",), classes)["segm"], key=lambda entry: entry["score"]):
        if entry["score"] >= score_threshold:
            results_of[entry["image_id"]].append(entry)
    for entry in dataset["annotations"]:
        objects_of[entry["image_id"]].append(entry)
    images = [image for image in dataset["images"] if image["id"] in objects_of][:num_images]
    if not images:
        raise AnnotationError(f"{annotations}: there is no object in any of its pictures, and so nothing to draw")

    names = {category["id"]: category["name"] for category in dataset["categories"]}
    palette = colormaps["tab10"].colors  # all of them dark enough for white text
    colours = {category: palette[index % len(palette)] for index, category in enumerate(names)}
    decoder = COCO()
    decoder.imgs = {image["id"]: image for image in images}  # all that annToRLE, for any kind of mask, asks for
    figure, axes = _panels([image["height"] / image["width"] for image in images])
    for axis, image in zip(axes, images, strict=False):
        axis.imshow(_read_picture(files[image["id"]], image), interpolation="bilinear")
        for entry in objects_of[image["id"]]:
            _draw_truth(axis, decoder.annToMask(entry))
        found = [(entry, decoder.annToRLE(entry)) for entry in results_of[image["id"]]]
        for entry, mask in found:
            _draw_prediction(axis, entry, mask, colours[entry["category_id"]])
        labels = [f"{names[entry['category_id']]} {entry['score']:.2f}" for entry, _ in found]
        _write_labels(axis, image, found, labels, colours)
        axis.set(xlim=(-0.5, image["width"] - 0.5), ylim=(image["height"] - 0.5, -0.5))
    figure.suptitle(f"predictions with a score of at least {score_threshold:g}; dashed: the truth", fontsize="medium")
    save_figure(figure, out)


def _read_picture(path: Path, image: dict[str, Any]) -> np.ndarray:
    """(H, W, 3), RGB."""
    picture = read_picture(str(path))
    check_size(str(path), picture, image["height"], image["width"])
    return picture[..., ::-1]


def _panels(aspects: list[float]) -> tuple[Figure, np.ndarray]:
    """A figure with axes in rows, for pictures of so much height to their width."""
    columns = min(COLUMNS, len(aspects))
    heights = [max(aspects[first : first + columns]) for first in range(0, len(aspects), columns)]
    size = PANEL_WIDTH * columns, PANEL_WIDTH * sum(heights) + 0.35
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights).ravel()
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def _draw_truth(axis: Axes, mask: np.ndarray) -> None:
    # A frame of zeros, or the outline stays open where an object touches the edge of the picture.
    mask = np.pad(mask, 1)
    positions = np.arange(mask.shape[1]) - 1, np.arange(mask.shape[0]) - 1
    outline = axis.contour(*positions, mask, levels=[0.5], colors="white", linewidths=1, linestyles="--")
    outline.set_path_effects([withStroke(linewidth=2, foreground="black", alpha=0.5)])


def _draw_prediction(axis: Axes, entry: dict[str, Any], mask: dict[str, Any], colour: tuple[float, ...]) -> None:
    layer = np.zeros((*mask["size"], 4))
    layer[coco_mask.decode(mask) > 0] = (*colour, 0.5)
    axis.imshow(layer, interpolation="nearest")
    left, top, right, bottom = _corners(entry, mask)
    # imshow puts the middle of the first pixel at 0, COCO its corner.
    box = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.6)
    box.set_path_effects([withStroke(linewidth=2.6, foreground="white", alpha=0.6)])
    axis.add_patch(box)


def _corners(entry: dict[str, Any], mask: dict[str, Any]) -> Box:
    x, y, width, height = entry.get("bbox") or coco_mask.toBbox(mask)
    return x, y, x + width, y + height


def _write_labels(
    axis: Axes,
    image: dict[str, Any],
    found: list[tuple[dict[str, Any], dict[str, Any]]],
    labels: list[str],
    colours: dict[int, tuple[float, ...]],
) -> None:
    """The labels of all predictions, over what is drawn of them; or that there are none."""
    boxes = [_corners(entry, mask) for entry, mask in found]
    places = LabelPlaces(boxes, image["width"], image["height"])
    font_pixels = FONT_SIZE * image["width"] / (72 * PANEL_WIDTH)
    for (entry, _), box, text in zip(found, boxes, labels, strict=True):
        x, y = places.take(box, label_size(text, font_pixels))
        axis.text(
            x,
            y,
            text,
            fontsize=FONT_SIZE,
            color="white",
            verticalalignment="top",
            bbox={"facecolor": colours[entry["category_id"]], "edgecolor": "none", "pad": 1.2, "alpha": 0.9},
            clip_on=True,
            parse_math=False,  # a $ in a category's name is a $
        )
    if not found:
        say_none(axis)
