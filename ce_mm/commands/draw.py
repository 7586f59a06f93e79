"""Draw what a detector sees: a sheet of pictures with predicted masks, boxes and scores, and the true outlines dashed.

ce_mm draw ANNOTATIONS IMAGE_ROOT RESULTS --out predictions.png [--images N]

RESULTS, and when a pickle needs --config or --classes, are as for ce_mm eval.
"""
import argparse
import sys
from pathlib import Path

from ce_mm.commands import add_class_options, named_classes
from ce_mm.compat.requirements import MissingRequirementError
from ce_mm.files import check_destination


def main() -> int:
    """Parse the arguments and draw; bad input ends with one line and status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="COCO annotation file")
    parser.add_argument("image_root", type=Path, help="folder of its pictures")
    parser.add_argument("results", type=Path, help="COCO results with masks (.json), or what mmdet's test dumps (.pkl)")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--images", type=int, default=12, help="number of pictures (default: %(default)s)")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="lowest score drawn (default: %(default)s)")
    add_class_options(parser)
    args = parser.parse_args()
    try:
        if args.config is not None:
            check_destination(args.out, [args.config])
        from ce_mm.analysis.prediction_sheet import draw_prediction_sheet

        draw_prediction_sheet(
            args.annotations, args.image_root, args.results, args.out, args.images, args.score_threshold,
            classes=named_classes(args),
        )  # fmt: skip
    except (ValueError, OSError, MissingRequirementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
