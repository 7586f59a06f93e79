"""Kill a small training twenty times in a row, resume it each time, and compare its end with one that nobody killed.

python -m tools.evidence.reliability.kill_and_resume --out docs/reliability

All runs are `tools/train.py CONFIG --resume`, and all kills are SIGKILL: at random in a step, as soon as a file is seen
half-written, and at chosen system calls while a checkpoint is saved. To try a file system of your own, name a folder in
it by --work-dir. Writes kill_and_resume.json and kill_and_resume.md. Exit code: 0 all is bit-identical and every
checkpoint was whole, 1 not. Needs Linux.
"""
import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path

from tqdm import tqdm

from ce_mm.checkpoints.reading import CheckpointError
from ce_mm.files import DestinationError, check_folder
from tools.evidence import pages
from tools.evidence.reliability.conditions import conditions
from tools.evidence.reliability.trials import EPOCH_LENGTH, SERIES, STATES, Outcome, run_trials


def main() -> int:
    """Parse the arguments, run the trials, and write what they came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the record")
    parser.add_argument("--kills", type=int, default=len(SERIES), help="default: %(default)s")
    parser.add_argument("--ranks", type=int, default=1, help="processes that train together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: %(default)s)")
    parser.add_argument("--work-dir", type=Path, help="folder to train in, not there yet (default: a temporary one)")
    args = parser.parse_args()
    if args.kills < 1 or args.ranks < 1:
        parser.error(f"--kills and --ranks must be at least 1, got {args.kills} and {args.ranks}")
    with tempfile.TemporaryDirectory() as temporary, tqdm(total=args.kills, desc="kills") as bar:
        folder = args.work_dir or Path(temporary)
        try:
            check_folder(args.out, [f"kill_and_resume.{suffix}" for suffix in ("json", "md")])
            folder.mkdir(parents=True, exist_ok=args.work_dir is None)
            moments = list(islice(cycle(SERIES), args.kills))
            outcome = run_trials(moments, folder, (), args.ranks, args.seed, bar.update)
        except (CheckpointError, DestinationError, RuntimeError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    record = dict(
        ranks=args.ranks, seed=args.seed, iterations_of_an_epoch=EPOCH_LENGTH, conditions=conditions(),
        **asdict(outcome),
    )  # fmt: skip
    pages.write(args.out, "kill_and_resume", page(outcome, record), record)
    print(verdict(outcome))
    return 1 if outcome.differences else 0


def verdict(outcome: Outcome) -> str:
    """The result in a line."""
    end = "bit-identical to" if not outcome.differences else f"in {len(outcome.differences)} values different from"
    return (
        f"{len(outcome.kills)} kills, {outcome.checkpoints_read} checkpoints seen, all of them whole; the end is {end} "
        f"that of a training that was not killed ({outcome.values_compared} values and tensors compared)."
    )


def page(outcome: Outcome, record: dict) -> str:
    """The record for people."""
    how = Counter("at a system call while saving" if "call" in kill.moment else kill.moment for kill in outcome.kills)
    rows = [
        [str(number), kill.moment, kill.place, ", ".join(kill.left_half_written) or "–",
         kill.resumes_from or "the start"]
        for number, kill in enumerate(outcome.kills, 1)
    ]  # fmt: skip
    headings = ["", "killed", "last act, or iteration", "left half-written", "goes on from"]
    processes = "one process" if record["ranks"] == 1 else f"{record['ranks']} processes, each"
    differences = [f"Different: {', '.join(outcome.differences)}.", ""] if outcome.differences else []
    return "\n".join([
        "# Killed and resumed",
        "",
        verdict(outcome),
        "",
        *differences,
        "A small CE-ResNet with Mixup, CutMix, random crops, flips and colours, drop path, momentum, two schedules, "
        f"EMA, and the best checkpoint kept, trained by `tools/train.py` in {processes} with two persistent workers, "
        f"{EPOCH_LENGTH} iterations in an epoch, a checkpoint after each. Every run was ended by SIGKILL in its "
        f"second epoch ({', '.join(f'{count} {kind}' for kind, count in how.items())}), and the next one started "
        f"with `--resume`. Compared in the end: {', '.join(f'`{state}`' for state in STATES)}.",
        "",
        "```bash",
        pages.command_line("reliability.kill_and_resume", sys.argv[1:]),
        "```",
        "",
        pages.table(headings, rows, words=range(1, 5)),
        "",
        record["conditions"],
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
