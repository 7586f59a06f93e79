"""Make the generated shapes data set: python tools/make_shapes.py ROOT [--train N --val N --crops N --seed S]."""

import argparse
import sys
from pathlib import Path

from ce_mm.datasets import make_shapes


def main() -> None:
    """Parse the arguments and make the folder, or find it as it should be; a bad argument ends with status 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder to make; reused if it was made with the same arguments")
    parser.add_argument("--train", type=int, default=500, help="training pictures (default: %(default)s)")
    parser.add_argument("--val", type=int, default=100, help="validation pictures (default: %(default)s)")
    parser.add_argument("--crops", type=int, default=1200, help="crops for a classifier (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default: %(default)s)")
    args = parser.parse_args()
    try:
        root = make_shapes(args.root, args.train, args.val, num_crops=args.crops, seed=args.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)  # what was begun is removed already
    print(f"The shapes are in {root}")


if __name__ == "__main__":
    main()
