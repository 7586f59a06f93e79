"""CE against the other norms and rectifiers on CIFAR-10: train, measure, and write a table and pictures.

python -m tools.evidence.cifar10 cifar-10-python.tar.gz --out results

What is finished is kept: the same command goes on where it was stopped, and with everything finished writes the results
again. It needs torch, NumPy, Pillow and tqdm alone; but SE is mmpretrain's, and the pictures need matplotlib.
"""
import argparse
import math
import sys
from pathlib import Path

from ce_mm.files import check_folder
from tools.evidence.cifar10.network import VARIANTS
from tools.evidence.cifar10.pictures import read_cifar10
from tools.evidence.cifar10.report import FILES, write_report
from tools.evidence.cifar10.running import plan, run_all
from tools.evidence.cifar10.training import RECIPES
from tools.evidence.stopping import resumable

HELP = (
    "short: minutes on a core; decay: tens of minutes, under a long training's weight decay; decay-weights: the same "
    "without decay of γ and β; paper: for a GPU"
)


@resumable
def main() -> int:
    """Parse the arguments, train what is not trained yet, and report on what is."""
    parser = argparse.ArgumentParser(
        "cifar10", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="cifar-10-python.tar.gz, or an .npz of JPEG pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder for trainings and results; run again to go on")
    parser.add_argument("--recipe", choices=RECIPES, default="short", help=HELP)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), metavar="NAME", help=", ".join(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3, help="of BN+ReLU and BN+CE+ReLU (default: %(default)s)")
    parser.add_argument("--other-seeds", type=int, default=1, help="of each of the others (default: %(default)s)")
    parser.add_argument("--threshold", type=float, default=0.01, help="magnitude below which a channel is inhibited")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time, which share the cores")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no epoch later than this")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    try:
        runs = plan(args.variants, args.seeds, args.other_seeds)
        check_folder(args.out, FILES, [args.data])
        data = read_cifar10(args.data)
        results = run_all(runs, args.recipe, data, args.out, args.threshold, args.workers, args.minutes, args.device)
        if results:
            write_report(results, args.out, args.recipe, command(args), len(runs))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finished = sum(map(len, results.values()))
    then = f"results: {args.out / 'results.md'}" if results else "there are no results yet; the same command goes on"
    print(f"{finished} of {len(runs)} trainings are finished; {then}")
    return 0


def command(args: argparse.Namespace) -> str:
    """What made the results, without what is different on each machine."""
    return (
        f"python -m tools.evidence.cifar10 {args.data.name} --out {args.out.name} --recipe {args.recipe} "
        f"--seeds {args.seeds} --other-seeds {args.other_seeds} --threshold {args.threshold} "
        f"--variants {' '.join(args.variants)}"
    )


if __name__ == "__main__":
    sys.exit(main())
