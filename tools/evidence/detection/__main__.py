"""CE against BN in detection: the demo's whole chain, several seeds of each, and what the pairs of a seed differ by.

python -m tools.evidence.detection --out docs/detection

For each norm and seed: pretrain, Mask R-CNN for each number of epochs, find, evaluate. What is finished is kept in
--work, a training that was stopped goes on from its last epoch, and a page can be written at any time. CE with seed 0
is the demo's own chain.
"""
import argparse
import math
import sys
from pathlib import Path

from ce_mm.files import check_folder
from tools.evidence import pages
from tools.evidence.detection.report import FILES, write_report
from tools.evidence.detection.running import chains, read_results, run_all
from tools.evidence.stopping import resumable


@resumable
def main() -> int:
    """Parse the arguments, train what is not trained yet, and report on what is."""
    parser = argparse.ArgumentParser(
        "detection", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the numbers, the page and the picture")
    parser.add_argument("--work", type=Path, default=Path("work_dirs/detection"), help="of the trainings")
    parser.add_argument("--seeds", type=int, default=5, help="of each norm (default: %(default)s)")
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 9], help="of the detectors (default: 3 and 9)")
    parser.add_argument("--workers", type=int, default=1, help="chains at a time, which share the cores")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long; run again to go on")
    args = parser.parse_args()
    try:
        runs = chains(args.work, args.seeds, args.epochs)
        check_folder(args.out, FILES)
        finished = run_all(runs, args.workers, args.minutes)
        results = read_results(runs)
        if results:
            arguments = ["--seeds", str(args.seeds), "--epochs", *map(str, args.epochs)]
            write_report(results, args.out, pages.command_line("detection", ["--out", str(args.out), *arguments]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{finished} of {len(runs)} chains are finished" + (f"; results: {args.out / FILES[1]}" if results else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
