"""Run slices of what needs a GPU: bash tools/evidence/gpu.sh OUT [SLICE ...]

Without a slice, all, one after the other; one that is done is skipped. Each ends after nine minutes at the latest, and
what it has not finished begins anew, or goes on where it can, when it is run again. OUT gets slices.md and slices.json:
what was run, on which machine, with which versions, and how it ended; a log of each slice; and the slices' own results.
It needs torch and Triton; for the tests pytest, which is fetched if it is missing; for CIFAR-10 NumPy, Pillow and tqdm.
"""
import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from ce_mm.files import check_folder
from tools.evidence import pages
from tools.evidence.benchmark import records
from tools.evidence.gpu.slices import SLICES, Command
from tools.evidence.stopping import resumable

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 9 * 60
#: The exit status of what ran past its time.
TIMED_OUT = 124


@resumable
def main() -> int:
    """Parse the arguments and run; the status is 1 if a command failed, 2 for bad input."""
    parser = argparse.ArgumentParser("gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of all results")
    about = "; ".join(f"{name}: {each.about}" for name, each in SLICES.items())
    parser.add_argument("slices", nargs="*", metavar="SLICE", help=about)
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on a CPU, in Triton's interpreter")
    args = parser.parse_args()
    unknown = [name for name in args.slices if name not in SLICES]
    try:
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no slice; expected some of {', '.join(SLICES)}")
        if not args.rehearse and not torch.cuda.is_available():
            raise ValueError("PyTorch finds no GPU here; --rehearse runs the same commands at tiny sizes without one")
        check_folder(args.out, ["slices.json", "slices.md"])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = args.out.resolve()
    ends_well = [run(name, out, args.rehearse) for name in args.slices or SLICES]
    return 0 if all(ends_well) else 1


def run(name: str, out: Path, rehearses: bool) -> bool:
    """Run a slice that is not done, and write down how it ended.

    Returns:
        Whether all of its commands ended well.
    """
    kept = read(out)
    if kept.get(name, {}).get("done"):
        records.say(f"{name}: done")
        return True
    records.say(f"{name}: {SLICES[name].about}")
    start, ended = time.monotonic(), []
    out.mkdir(parents=True, exist_ok=True)
    env = os.environ | dict(PYTHONUNBUFFERED="1")
    if rehearses:
        env |= dict(CUDA_VISIBLE_DEVICES="")
        env |= dict(TRITON_INTERPRET="1", CE_MM_BACKEND="triton") if SLICES[name].interpreted else {}
    (out / f"{name}.log").unlink(missing_ok=True)
    for command in SLICES[name].commands(out, rehearses):
        status = run_command(command, out / f"{name}.log", start + SECONDS - time.monotonic(), env)
        shown = ["python" if word == sys.executable else word for word in command]
        ended.append(dict(command=shlex.join(shown), status=status))
    well = all(each["status"] == 0 for each in ended)
    device = "cpu" if rehearses else "cuda"
    seconds = round(time.monotonic() - start)
    done = well and SLICES[name].is_done(out)
    kept[name] = dict(done=done, seconds=seconds, commands=ended, machine=records.machine(device))
    pages.write(out, "slices", page(kept), kept)
    return well


def run_command(command: Command, log: Path, seconds: float, env: dict[str, str]) -> int:
    """Run one with its output in the log, and end it and what it has started after so many seconds; its status."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            return TIMED_OUT
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def read(out: Path) -> dict[str, dict]:
    """How the slices of a folder ended so far."""
    path = out / "slices.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def page(kept: dict[str, dict]) -> str:
    """A row for each command, and the machine of each slice."""
    rows = [
        [name, f"`{each['command']}`", "done" if each["status"] == 0 else f"status {each['status']}",
         str(slice_["seconds"]), "{device}; PyTorch {torch}, Triton {triton}, Python {python}".format(
             **slice_["machine"])]
        for name, slice_ in kept.items() for each in slice_["commands"]
    ]  # fmt: skip
    return "# On a GPU\n\n" + pages.table(["slice", "command", "ended", "s, the slice", "on"], rows, words=(0, 1, 2, 4))


if __name__ == "__main__":
    sys.exit(main())
