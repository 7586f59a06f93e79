"""What a benchmark leaves behind: its numbers (JSON), its table (Markdown), its picture (PNG), and lines on the way."""
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from ce_mm import __version__
from ce_mm.files import check_destination, replacing


def say(line: str) -> None:
    """A line about the run, for whoever waits for it."""
    print(line, file=sys.stderr, flush=True)


def progress(what: str) -> Callable[[int], Iterable[int]]:
    """``range`` that shows how far it is: a bar of tqdm, or one line where there is no tqdm or no terminal."""
    try:
        from tqdm import trange
    except ImportError:
        trange = None
    if trange is None or not sys.stderr.isatty():
        say(what)
        return range
    return lambda rounds: trange(rounds, desc=what, leave=False)


def machine(device: str) -> dict[str, object]:
    """What the numbers depend on beside the code."""
    packages = ("torch", "triton", "mmengine", "onedl-mmengine")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return dict(
        device=torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        cpu=_cpu_name(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        ce_mm=__version__,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        **versions,
    )


def _cpu_name() -> str:
    """Its name and the vector instructions that PyTorch uses on it, which tell apart what clouds sell by one name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def command_line(tool: str, arguments: Sequence[str]) -> str:
    """The command that repeats a run, from the repository's root."""
    return f"python -m tools.evidence.benchmark.{tool} {shlex.join(arguments)}"


def heading(title: str, numbers: dict) -> str:
    """The start of a table's page: what was measured where, and how to repeat it."""
    where, settings = numbers["machine"], numbers["settings"]
    lines = [
        f"# {title}",
        f"{where['device']}, {where['cores']} cores, {where['threads']} threads; PyTorch {where['torch']}, Triton "
        f"{where['triton'] or '(none)'}, Python {where['python']}, ce_mm {where['ce_mm']}; {where['date']}.",
        f"Batch {settings['batch']}, {settings['dtype']}, {settings['layout']}; {settings['warmup']} rounds of "
        f"warm-up, then {settings['rounds']} that count.",
        f"```bash\n{numbers['command']}\n```",
        *numbers["notes"],
    ]
    return "\n\n".join(lines)


def ratio_text(summary: dict[str, float]) -> str:
    """A ratio with its quartiles."""
    return f"{summary['ratio']:.2f} ({summary['low']:.2f}–{summary['high']:.2f})"


def write(folder: Path, name: str, numbers: dict, table: str) -> Path:
    """Write NAME.json and NAME.md; returns the former."""
    numbers_file = folder / f"{name}.json"
    for path, text in ((numbers_file, json.dumps(numbers, indent=1)), (folder / f"{name}.md", table)):
        with replacing(path) as unfinished:
            unfinished.write_text(text + "\n", encoding="utf-8")
    return numbers_file


def write_with_picture(folder: Path, name: str, numbers: dict, table: str) -> None:
    """Write NAME.json, NAME.md and NAME.png; without matplotlib the picture is left for another machine."""
    numbers_file = write(folder, name, numbers, table)
    try:
        draw(numbers_file)
    except ModuleNotFoundError as error:
        say(f"no picture: {error.name} is not installed; draw it where it is, with --plot {numbers_file}")


def draw(numbers_file: Path) -> None:
    """Draw the picture of a file of numbers, beside it.

    Raises:
        ValueError: the file holds no numbers of a benchmark, or its own name is that of the picture.
        ModuleNotFoundError: matplotlib is not installed.
    """
    from tools.evidence.benchmark.pictures import PICTURES  # needs matplotlib

    try:
        numbers = json.loads(numbers_file.read_text(encoding="utf-8"))
        picture = PICTURES[numbers["benchmark"]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{numbers_file}: expected the JSON file that a benchmark wrote") from None
    out = numbers_file.with_suffix(".png")
    check_destination(out, [numbers_file])
    picture(numbers, out)
