"""Convert a checkpoint of the CE authors, torchvision, mmpretrain or mmdet for a detector, a classifier or the authors.

ce_mm convert work_dirs/ce-resnet50/epoch_100.pth checkpoints/ce-resnet50_8xb32_in1k_backbone.pth
"""
import argparse
import sys
from pathlib import Path

from ce_mm.choices import LAYOUTS, TARGETS
from ce_mm.compat.requirements import MissingRequirementError, require


def main() -> int:
    """Parse the arguments, convert, and say what was done; an error is one line and ends with status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the checkpoint, a .pth or .safetensors file; it is only read")
    parser.add_argument(
        "destination", type=Path, help="new file, .pth or .safetensors; its config comes beside it"
    )
    parser.add_argument("--from", dest="layout", choices=LAYOUTS, default="auto", help="layout that SRC must have")
    parser.add_argument("--to", dest="target", choices=TARGETS, default=TARGETS[0], help="default: %(default)s")
    parser.add_argument("--publish", action="store_true", help="put eight digits of the hash into the names")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    args = parser.parse_args()
    try:
        require("mmengine", "mmcv", "mmpretrain")
        from ce_mm.checkpoints.convert import convert

        report = convert(args.source, args.destination, args.layout, args.target, args.publish, args.dry_run)
    except (ValueError, MissingRequirementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report)
    return 0
