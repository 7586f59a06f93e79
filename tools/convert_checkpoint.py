"""Take the backbone out of an mmpretrain CE classifier, for a detector's ``init_cfg``.

python tools/convert_checkpoint.py work_dirs/ce-resnet50/epoch_100.pth checkpoints/ce-resnet50_8xb32_in1k_backbone.pth
"""
import argparse
import sys
from pathlib import Path

from ce_mm.checkpoints.convert import extract_backbone
from ce_mm.checkpoints.reading import CheckpointError


def main() -> int:
    """Parse the arguments, convert, and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="checkpoint saved by mmpretrain's training")
    parser.add_argument("destination", type=Path, help="file to write; must not exist")
    args = parser.parse_args()
    try:
        names = extract_backbone(args.source, args.destination)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ce = sum(".bd." in name or ".ir." in name or name.endswith(".mix") for name in names)
    print(f"{args.destination}: {len(names)} tensors of the backbone, {ce} of them Channel Equilibrium's own")
    return 0


if __name__ == "__main__":
    sys.exit(main())
