"""COCO evaluation of a results file: ce_mm eval ANNOTATIONS RESULTS [--metrics bbox segm] [--out FILE].

RESULTS is COCO's result JSON, or the pickle that mmdet's test dumps with --out (read without running anything in it).
A pickle does not name its classes: where the model knows fewer than the categories of ANNOTATIONS, or the last of them
is never found, its config (--config) or a list (--classes) says which they are; what is evaluated are these. Prints
pycocotools' twelve numbers for each metric. Mask results of a JSON file that also have boxes are sized by these, as
pycocotools does; those of a pickle by their masks, as mmdet does.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from ce_mm.choices import METRICS
from ce_mm.commands import add_class_options, named_classes
from ce_mm.compat.requirements import MissingRequirementError
from ce_mm.files import check_destination, replacing


def main() -> int:
    """Parse the arguments, evaluate and print the table; bad input ends with one line and status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="COCO instance annotations (JSON)")
    parser.add_argument("results", type=Path, help="COCO results (.json) or mmdet's dumped results (.pkl, .pickle)")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=METRICS, help="default: both")
    parser.add_argument("--per-category", action="store_true", help="also give the AP of each category")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers, under mmdet's names, in full precision")
    add_class_options(parser)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if args.out is not None:
            check_destination(args.out, filter(None, [args.annotations, args.results, args.config]))
        from ce_mm.evaluation import evaluate_coco

        numbers = evaluate_coco(args.annotations, args.results, args.metrics, args.per_category, named_classes(args))
        if args.out is not None:
            with replacing(args.out) as unfinished:
                unfinished.write_text(json.dumps(numbers, indent=2) + "\n")
    except (ValueError, OSError, MissingRequirementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sys.stdout.reconfigure(errors="backslashreplace")  # the terminal may not have all letters of the categories' names
    print(format_table(numbers))
    return 0


def format_table(numbers: dict[str, float]) -> str:
    """The numbers of `evaluate_coco` as text: a row for each number and category, a column for each metric."""
    metrics = [metric for metric in METRICS if f"coco/{metric}_mAP" in numbers]
    prefix = f"coco/{metrics[0]}_"
    names = [key.removeprefix(prefix) for key in numbers if key.startswith(prefix)]
    width = max(map(len, names))
    lines = [" " * width + "".join(f"{metric:>9}" for metric in metrics)]
    for name in names:
        lines.append(f"{name:<{width}}" + "".join(f"{numbers[f'coco/{metric}_{name}']:9.3f}" for metric in metrics))
    return "\n".join(lines)
