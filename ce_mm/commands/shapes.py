"""Make a small detection data set that is drawn, not downloaded: six shapes, told apart by their outline alone.

ce_mm shapes data/shapes --train 800 --val 80 --crops 4500

Every picture comes from its own random stream, seeded by (seed, split, number of the picture), so a picture does not
depend on how many others are made, and the same seed gives the same pixels and the same JSON everywhere. A shape is
drawn once, as a small map of coverage (a *sprite*), from its signed distance; where it lands, it covers what was drawn
before. Annotations describe what remains visible. The folder is made beside its final place and moved there when it is
complete, with the recipe that it was made by.
"""
import argparse
import sys
from pathlib import Path


def main() -> int:
    """Parse the arguments and make the folder, or find it as it should be; a bad argument ends with status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder to make; found there with the same arguments it is reused")
    parser.add_argument("--train", type=int, default=500, help="training pictures (default: %(default)s)")
    parser.add_argument("--val", type=int, default=100, help="validation pictures (default: %(default)s)")
    parser.add_argument("--crops", type=int, default=1200, help="crops for a classifier (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default: %(default)s)")
    args = parser.parse_args()
    try:
        from ce_mm.datasets.shapes import make_shapes

        root = make_shapes(args.root, args.train, args.val, num_crops=args.crops, seed=args.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # what was begun is removed already
    print(f"The shapes are in {root}")
    return 0
