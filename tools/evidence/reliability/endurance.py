"""Train a small CE network for 10,000 steps and see whether memory stays flat.

python -m tools.evidence.reliability.endurance --out docs/reliability

Two loops: batches of one shape, and batches of changing number and size with evaluations between. Writes
endurance.json, endurance.md and endurance.png. Exit code: 0 flat, 1 something grew, 2 the arguments or the system do
not do. Needs Linux with glibc.
"""
import argparse
import shlex
import sys
from pathlib import Path

from ce_mm.files import check_folder
from tools.evidence.reliability.endurance_page import flat, write
from tools.evidence.reliability.memory import LOOPS, train


def main() -> int:
    """Parse the arguments, run the loops, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the numbers, the page and the picture")
    parser.add_argument("--steps", type=int, default=10_000, help="of each loop, at least 2000 (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=300, help="steps before these (default: %(default)s)")
    args = parser.parse_args()
    try:
        if args.steps < 2000 or args.warmup < 1:
            raise ValueError(
                "the first thousand steps are compared with the last, so --steps must be at least 2000 and --warmup at "
                f"least 1, got {args.steps} and {args.warmup}"
            )
        check_folder(args.out, [f"endurance.{suffix}" for suffix in ("json", "md", "png")])
        runs = {name: train(loop, args.steps, args.warmup, progress=name) for name, loop in LOOPS.items()}
        command = f"python -m tools.evidence.reliability.endurance {shlex.join(sys.argv[1:])}"
        args.out.mkdir(parents=True, exist_ok=True)
        write(runs, args.warmup, args.out, command)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    verdict = flat(runs)
    print(f"{'flat' if verdict else 'something grew'}: {args.out / 'endurance.md'}")
    return 0 if verdict else 1


if __name__ == "__main__":
    sys.exit(main())
