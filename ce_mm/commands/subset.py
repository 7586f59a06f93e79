"""Take a few pictures out of a COCO annotation file, to see on a small machine that a detector can learn real ones.

ce_mm subset data/coco/annotations/instances_train2017.json work_dirs/eight.json --pictures 8
"""
import argparse
import sys
from pathlib import Path


def main() -> int:
    """Parse the arguments, write the file, and name the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--pictures", type=int, default=8, help="how many (default: %(default)s)")
    args = parser.parse_args()
    try:
        from ce_mm.datasets.subset import write_subset

        names = write_subset(args.annotations, args.destination, args.pictures)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sys.stdout.reconfigure(errors="backslashreplace")  # the terminal may not have all letters of the pictures' names
    print(f"{args.destination}: {', '.join(names)}")
    return 0
