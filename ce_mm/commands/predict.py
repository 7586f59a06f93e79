"""Find objects in pictures: boxes and masks drawn, and a JSON file beside each drawn picture.

ce_mm predict CONFIG CHECKPOINT PICTURES... --out DIR

PICTURES are files of any common format, folders (with all folders in them), or quoted patterns such as 'a/**/*.png'.
For cat.png it writes DIR/cat.jpg and DIR/cat.json; pictures from several folders keep their folders. Pictures are read
as in training: their EXIF orientation turns those that OpenCV turns (JPEG, PNG, TIFF). Exit code: 0 all done, 1 some
pictures could not be used (they are named at the end, the others are done), 2 bad input or no place to write.
"""
import argparse
import sys
from pathlib import Path

from ce_mm.compat.requirements import MissingRequirementError


def main() -> int:
    """Parse the arguments, predict, and say what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file of a detector")
    parser.add_argument("checkpoint", help="weights that fit it")
    parser.add_argument("pictures", nargs="+", help="pictures, folders of pictures, or patterns")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--score-thr", type=float, default=0.3, help="take objects with a score above this (default: %(default)s)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    args = parser.parse_args()
    try:
        from ce_mm.prediction import predict

        report = predict(args.config, args.checkpoint, args.pictures, args.out, args.score_thr, args.device)
    except (ValueError, OSError, MissingRequirementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; what was finished is in {args.out}", file=sys.stderr)
        return 130
    print(f"{report.objects} objects in {len(report.written)} pictures, written to {args.out}")
    if report.failed:
        print(f"error: {len(report.failed)} pictures could not be used:", *report.failed, sep="\n  ", file=sys.stderr)
        return 1
    return 0
