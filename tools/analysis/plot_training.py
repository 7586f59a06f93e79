"""Draw the training curve of a work dir: python tools/analysis/plot_training.py WORK_DIR OUT."""

import argparse
import sys
from pathlib import Path

from ce_mm.analysis.training_curve import plot_training_curve


def main() -> None:
    """Parse the arguments and draw; bad input ends with one line and status 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work_dir", type=Path, help="where mmengine's training left its logs")
    parser.add_argument("out", type=Path, help="picture to write")
    args = parser.parse_args()
    try:
        plot_training_curve(args.work_dir, args.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
