"""How a training went, its loss and the AP of each validation: ce_mm plot WORK_DIR --out training.png.

Each run, resumed ones too, leaves a log of mmengine in a folder of its own, ``<time>/vis_data/scalars.json``. A run
that goes on from an earlier checkpoint, or starts afresh, supersedes what earlier runs logged from its first step on.
"""
import argparse
import sys
from pathlib import Path


def main() -> int:
    """Parse the arguments and draw; bad input ends with one line and status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dir", type=Path, help="where mmengine's training left its logs")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    args = parser.parse_args()
    try:
        from ce_mm.analysis.training_curve import plot_training_curve

        plot_training_curve(args.work_dir, args.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
