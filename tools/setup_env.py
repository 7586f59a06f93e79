"""Make `.venv` in the repository root, or reuse it while nothing that it was made from has changed.

    python3 tools/setup_env.py

The stamp inside `.venv` says that this script made it; when all is done, it holds a hash of requirements.txt, setup.py,
the interpreter's version and the folder. With that hash `.venv` is reused; with another text it is deleted and made
afresh, so a set-up that was interrupted anywhere is simply started again; without a stamp it is somebody's own, and the
set-up refuses to begin. Of two set-ups at once, the second waits and then reuses. Needs
Python 3.11 to 3.13 somewhere on PATH (this file itself runs on 3.8). Writes below the repository root only, apart from
pip's cache.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SUPPORTED = ((3, 11), (3, 12), (3, 13))
"""The pins have no wheels for any other Python."""
NEEDED_BYTES = 10 * 10**9
"""A finished `.venv` holds 6.5 GB; while it is made, the downloaded archives lie beside it."""
STAMP = "ce_mm-stamp"
UNFINISHED = "unfinished"
"""What the stamp says while `.venv` is made or deleted."""
LEAKING = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")
"""Settings that would let other packages in, or put ours elsewhere."""
TAIL_LINES = 30
START = time.monotonic()

PROBE = """
import importlib.util, json, sys
base = getattr(sys, "_base_executable", None) or sys.executable
print(json.dumps([base, sys.version_info[:3], importlib.util.find_spec("ensurepip") is not None]))
"""
CHECK = """
import importlib
for name in ("torch", "torchvision", "cv2", "mmengine", "mmcv", "mmdet", "mmpretrain", "ce_mm"):
    print(name, importlib.import_module(name).__version__, flush=True)
"""


class SetUpError(Exception):
    """What keeps the set-up from going on, in words for the user."""


class Interpreter(NamedTuple):
    """A Python: its path outside any virtual environment, its version, and whether it can put pip into a new one."""

    path: str
    version: tuple[int, int, int]
    has_pip: bool


class Step(NamedTuple):
    """One command of the set-up, and what to show of a line of its output (None: nothing)."""

    title: str
    command: list[str]
    show: Callable[[str], str | None]


def say(text: str) -> None:
    """Print a line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - START:6.1f} s] {text}", flush=True)


def probe(python: str | Path) -> Interpreter | None:
    """Ask an interpreter what it is; None where it does not run (a dangling link, a version manager's empty shim)."""
    try:
        answer = subprocess.run(
            [str(python), "-I", "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
        ).stdout
        path, version, has_pip = json.loads(answer)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    return Interpreter(path, tuple(version), has_pip)


def candidates() -> Iterator[str]:
    """The running interpreter, then every python3.13, python3.12 and python3.11 on PATH."""
    if sys.executable:
        yield sys.executable
    for major, minor in reversed(SUPPORTED):
        for folder in os.get_exec_path():
            found = shutil.which(f"python{major}.{minor}", path=folder)
            if found:
                yield found


def find_interpreter() -> Interpreter:
    """The first candidate that can make the environment.

    Raises:
        SetUpError: if there is none; it lists what was found.
    """
    refused = []
    for candidate in candidates():
        found = probe(candidate)
        if found is None:
            continue
        if found.version[:2] in SUPPORTED and found.has_pip:
            return found
        lacks = "" if found.has_pip else " without ensurepip (Debian and Ubuntu: install python3-venv)"
        refused.append(f"{candidate} is Python {'.'.join(map(str, found.version))}{lacks}")
    wanted = ", ".join(f"python{major}.{minor}" for major, minor in SUPPORTED)
    raise SetUpError(
        f"the set-up needs one of {wanted} on PATH, with its venv and ensurepip modules. "
        f"Found: {'; '.join(refused) or 'none that runs'}. Install one and run this again."
    )


def fingerprint(root: Path, version: tuple[int, int, int]) -> str:
    """What the stamp holds: a hash of all that an environment is made from, and of where it lies."""
    # The folder counts because an environment that was moved or copied still points to the old place.
    parts = [str(root), list(version)]
    parts += [hashlib.sha256((root / name).read_bytes()).hexdigest() for name in ("requirements.txt", "setup.py")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def is_reusable(root: Path) -> bool:
    """Whether `.venv` was finished, runs, and was made from what is here now."""
    try:
        stamp = (root / ".venv" / STAMP).read_text()
    except OSError:
        return False
    found = probe(root / ".venv" / "bin" / "python")
    return found is not None and stamp == fingerprint(root, found.version)


def check_space(root: Path) -> None:
    """Raise SetUpError if the disk cannot hold a new `.venv` in place of what is there."""
    files = (file for file in (root / ".venv").rglob("*") if file.is_file() and not file.is_symlink())
    available = shutil.disk_usage(root).free + sum(file.stat().st_size for file in files)
    if available < NEEDED_BYTES:
        raise SetUpError(
            f"the set-up needs {NEEDED_BYTES / 1e9:.0f} GB of free disk space in {root}, and there are "
            f"{available / 1e9:.1f} GB. Nothing was changed. Free some space and run this again."
        )


def check_ownership(venv: Path) -> None:
    """Raise SetUpError if there is a `.venv` that this script did not make."""
    is_folder = venv.is_dir() and not venv.is_symlink()
    is_ours = is_folder and ((venv / STAMP).is_file() or not any(venv.iterdir()))
    if os.path.lexists(str(venv)) and not is_ours:
        raise SetUpError(
            f"{venv} is there already, and this script did not make it (there is no {STAMP} in it). Nothing was "
            "changed. Move it to another name, or delete it if nobody needs it, and run this again."
        )


def remove(venv: Path) -> None:
    """Delete a `.venv` of this script's, its stamp last: one that is half deleted is still known, and never reused."""
    if not venv.is_dir():
        return
    say("deleting the old .venv")
    stamp = venv / STAMP
    stamp.write_text(UNFINISHED)
    for entry in venv.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry != stamp:
            entry.unlink()
    stamp.unlink()
    venv.rmdir()


def clean_environment(root: Path) -> dict[str, str]:
    """The environment of every step: no foreign packages, temporary files inside `.venv`, pinned build tools."""
    kept = {name: value for name, value in os.environ.items() if name not in LEAKING}
    scratch = str(root / ".venv" / "tmp")
    # pip up to 25.2 reads the first also for the builds that it isolates, later ones read the second. A URI, as pip
    # splits these at spaces.
    pins = (root / "requirements.txt").as_uri()
    return {
        **kept,
        "PYTHONNOUSERSITE": "1",
        "TMPDIR": scratch,
        "MPLCONFIGDIR": scratch,
        "PIP_CONSTRAINT": pins,
        "PIP_BUILD_CONSTRAINT": pins,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def pip_progress(line: str) -> str | None:
    """Make one readable line of those of pip's that say what it is at; None for the others."""
    taken_up = re.match(r"(?:Collecting|Processing) (?:\S*/)?([^/\s]+)", line)
    if taken_up:
        return taken_up[1]
    large_download = re.match(r"\s+Downloading (\S+) \((\d{2,}\.\d MB)\)", line)
    if large_download:
        return f"downloading {large_download[1]}, {large_download[2]}"
    building = re.match(r"\s*Building (?:editable|wheel) for (\S+) .*started", line)
    if building:
        return f"building {building[1]}"
    if line.startswith("Installing collected packages:"):
        return f"unpacking {line.count(',') + 1} package(s); pip is silent meanwhile"
    return None


def steps(root: Path, interpreter: Interpreter) -> list[Step]:
    """All commands of the set-up, in order."""
    python = str(root / ".venv" / "bin" / "python")
    pip = [python, "-I", "-m", "pip", "install", "--no-deps", "--progress-bar", "off", "--no-input"]
    version = ".".join(map(str, interpreter.version))
    return [
        Step(
            f"making .venv with {interpreter.path} (Python {version})",
            [interpreter.path, "-I", "-m", "venv", str(root / ".venv")],
            str,
        ),
        # pip builds mmcv's source archive apart from these packages; there it sees no torch, and so compiles nothing.
        Step("installing the packages of requirements.txt", [*pip, "-r", "requirements.txt"], pip_progress),
        Step("installing ce_mm itself", [*pip, "--no-build-isolation", "-e", "."], pip_progress),
        Step("checking that everything imports", [python, "-I", "-c", CHECK], str),
    ]


def run(step: Step, root: Path, lock: int) -> None:
    """Run one step and show its progress.

    Raises:
        SetUpError: if the command fails; with the end of its output.
    """
    say(step.title)
    tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
    # The child holds the lock too: where this process is killed, the next set-up waits until pip has ended as well.
    with subprocess.Popen(
        step.command,
        cwd=root,
        env=clean_environment(root),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=(lock,),
    ) as process:
        try:
            for line in process.stdout:
                tail.append(line.rstrip())
                shown = step.show(line.rstrip())
                if shown:
                    say(f"    {shown}")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise SetUpError(
            f"{step.title} failed with exit code {process.returncode}. The end of its output:\n\n"
            + "\n".join(f"    {line}" for line in tail)
            + "\n\nIf it names the network, check the connection and pip's settings (pip config list). "
            "The same command starts the set-up afresh."
        )


@contextlib.contextmanager
def locked(root: Path) -> Iterator[int]:
    """Hold `.venv.lock`, as one set-up at a time may; yields its file descriptor."""
    with open(root / ".venv.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is at work in this folder (it holds .venv.lock); waiting for it to end")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle.fileno()


def set_up(root: Path) -> None:
    """Leave a finished `.venv` in ``root``.

    Raises:
        SetUpError: if there is a `.venv` of somebody else's, no fitting Python, too little disk space, or a step fails.
        OSError: if the folder cannot be written.
    """
    venv = root / ".venv"
    with locked(root) as lock:
        if is_reusable(root):
            say(".venv is up to date")
            return
        check_ownership(venv)
        interpreter = find_interpreter()
        check_space(root)
        remove(venv)
        venv.mkdir()
        (venv / STAMP).write_text(UNFINISHED)
        (venv / "tmp").mkdir()
        for step in steps(root, interpreter):
            run(step, root, lock)
        shutil.rmtree(venv / "tmp")
        unfinished = venv / f"{STAMP}.tmp"
        unfinished.write_text(fingerprint(root, interpreter.version))
        os.replace(unfinished, venv / STAMP)
        say(".venv is ready")


def main() -> int:
    """Set up the repository that this file lies in; returns the exit code."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        set_up(ROOT)
    except (SetUpError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command starts the set-up afresh", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
