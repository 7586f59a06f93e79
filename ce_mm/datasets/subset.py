"""A few pictures out of a COCO annotation file, to see on a small machine that a detector can learn real ones."""
import json
from collections import defaultdict
from pathlib import Path

from ce_mm.evaluation.annotations import AnnotationError, read_annotations
from ce_mm.files import check_folder, replacing

SMALL = 32**2
"""Below this area, in pixels, COCO calls an object small."""
FIELDS = {
    "images": ("id", "file_name"),
    "annotations": ("id", "image_id", "area", "iscrowd"),
    "categories": ("id",),
}
"""What is read here of each entry, for `read_annotations`; the rest is handed on as it is."""


def write_subset(annotations: Path, destination: Path, num_pictures: int) -> list[str]:
    """Write the annotations of the first pictures that have objects, none of them small or a crowd.

    Args:
        annotations: a COCO annotation file.
        destination: the file to write, with all categories; replaced if it exists. Its folder is made.
        num_pictures: how many, at least 1.

    Returns:
        The pictures' file names, in the order of the annotation file.

    Raises:
        AnnotationError: the file is not COCO's, or has fewer such pictures.
        DestinationError: ``destination`` is the annotation file, or cannot be written.
        ValueError: ``num_pictures`` is less than 1.
    """
    if num_pictures < 1:
        raise ValueError(f"the number of pictures must be at least 1, got {num_pictures}")
    destination = Path(destination).resolve()  # or making its folder would make the missing one in missing/../a.json
    check_folder(destination.parent, [destination.name], [annotations])
    data = read_annotations(annotations, FIELDS)
    objects = defaultdict(list)
    for annotation in data["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    fitting = [
        image
        for image in data["images"]
        if objects[image["id"]] and not any(o["iscrowd"] or o["area"] < SMALL for o in objects[image["id"]])
    ]
    if len(fitting) < num_pictures:
        raise AnnotationError(
            f"{annotations} has {len(fitting)} pictures without small objects and crowds; {num_pictures} were asked for"
        )
    images = fitting[:num_pictures]
    subset = data | dict(images=images, annotations=[o for image in images for o in objects[image["id"]]])
    destination.parent.mkdir(parents=True, exist_ok=True)
    with replacing(destination) as unfinished:
        unfinished.write_text(json.dumps(subset))
    return [image["file_name"] for image in images]
