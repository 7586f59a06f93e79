"""Why are channels inhibited behind CE on GN and LN? Train the cases side by side and write gn_ln.md.

python -m tools.evidence.cifar10.gn_ln cifar-10-python.tar.gz --out docs/cifar10

The recipe is `short` of tools.evidence.cifar10, its first steps. It needs matplotlib, and takes fifteen to twenty
minutes on one core.
"""
import argparse
import sys
from pathlib import Path

import torch

from ce_mm.files import check_folder
from ce_mm.version import __version__
from tools.evidence import pages
from tools.evidence.cifar10.gn_ln.cases import CASES, follow
from tools.evidence.cifar10.gn_ln.page import write_page
from tools.evidence.cifar10.pictures import read_cifar10
from tools.evidence.cifar10.training import RECIPES, TEST_BATCH

STEPS = 200
LOOKS = (0, 20, 50, 100, 150, STEPS)
THRESHOLD = 0.01


def main() -> int:
    """Parse the arguments, train the cases one after the other, and write the page."""
    parser = argparse.ArgumentParser("gn_ln", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="cifar-10-python.tar.gz, or an .npz of JPEG pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder for gn_ln.md, .json and .png")
    args = parser.parse_args()
    try:
        check_folder(args.out, ("gn_ln.md", "gn_ln.json", "gn_ln.png"), [args.data])
        data = read_cifar10(args.data)
        recipe = RECIPES["short"]
        cases = {
            name: follow(case, recipe, data, 0, STEPS, LOOKS, THRESHOLD, name) for name, case in CASES.items()
        }
        args.out.mkdir(parents=True, exist_ok=True)
        record = dict(
            command=pages.command_line("cifar10.gn_ln", [args.data.name, "--out", str(args.out)]),
            torch=torch.__version__, ce_mm=__version__, steps=STEPS, pictures=TEST_BATCH, threshold=THRESHOLD,
            cases=cases,
        )  # fmt: skip
        write_page(record, args.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {args.out / 'gn_ln.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
