"""What a benchmark leaves behind: its records, one for each machine and day, and a page with a column for each.

BENCHMARK.json is ``{"records": {"machine, day": record}}``, the newest first, with all that was measured and what it
depends on. BENCHMARK.md and BENCHMARK.png are made from that file alone; the picture is of the newest record.
"""
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ce_mm import __version__
from tools.evidence import pages

#: A section's title -> what a row is called -> its cell.
Sections = dict[str, dict[tuple[str, ...], str]]


@dataclass(frozen=True)
class Benchmark:
    """One of them, as its page has it."""

    name: str  #: of its module, its files and its picture
    title: str
    notes: Sequence[str]  #: paragraphs that say how to read it
    sections: Callable[[dict], Sections]  #: a record's figures


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
    versions = {}
    for package in ("torch", "triton", "numba", "mmengine", "onedl-mmengine"):
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


def read(folder: Path, benchmark: Benchmark) -> dict[str, dict]:
    """The records in a folder, newest first; none where there is no file.

    Raises:
        ValueError: the file holds something else.
    """
    path = folder / f"{benchmark.name}.json"
    if not path.exists():
        return {}
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["records"]
        dict(records)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: expected the records of a benchmark; move it away or name another folder") from None
    return records


def add(folder: Path, benchmark: Benchmark, record: dict) -> None:
    """Write a record in front of those in the folder, in the place of that machine's of the same day."""
    name = "{device}, {date}".format(**record["machine"])
    write(folder, benchmark, {name: record} | {key: old for key, old in read(folder, benchmark).items() if key != name})


def write(folder: Path, benchmark: Benchmark, records: Mapping[str, dict]) -> None:
    """Write the records, their page and their picture; without matplotlib there is no picture, and a line says so."""
    pages.write(folder, benchmark.name, page(benchmark, records), dict(records=records))
    try:
        from tools.evidence.benchmark.pictures import PICTURES
    except ModuleNotFoundError as error:
        command = pages.command_line("benchmark.render", [str(folder)])
        say(f"no picture: {error.name} is not installed; where it is, draw it with {command}")
        return
    if benchmark.name in PICTURES:
        PICTURES[benchmark.name](next(iter(records.values())), folder / f"{benchmark.name}.png")


def page(benchmark: Benchmark, records: Mapping[str, dict]) -> str:
    """A page of Markdown: what was measured where, how to repeat it, and a table of each section."""
    parts = [f"# {benchmark.title}", *benchmark.notes, _table([_run(each) for each in records.values()], records)]
    parts += [f"{name}: {note}." for name, record in records.items() for note in record["notes"]]
    found = [benchmark.sections(record) for record in records.values()]
    for title in dict.fromkeys(title for sections in found for title in sections):
        columns = [sections.get(title, {}) for sections in found]
        parts.append(f"## {title}\n\n{_table(columns, records)}")
    return "\n\n".join(parts)


def _table(columns: Sequence[Mapping[tuple[str, ...], str]], names: Iterable[str]) -> str:
    """A column for each record, with a row for whatever one of them has."""
    labels = dict.fromkeys(label for column in columns for label in column)
    words = len(next(iter(labels)))
    rows = ([*label, *(column.get(label, "–") for column in columns)] for label in labels)
    return pages.table([*[""] * words, *names], rows, words=range(words))


def _run(record: dict) -> dict[tuple[str], str]:
    where, settings = record["machine"], record["settings"]
    return {
        ("cores, threads",): f"{where['cores']}, {where['threads']}",
        ("PyTorch, Triton, Numba, Python",): ", ".join(
            where.get(each, "–") or "none" for each in ("torch", "triton", "numba", "python")
        ),
        ("ce_mm",): where["ce_mm"],
        ("batch, maps",): f"{settings['batch']}, {settings['dtype']}, {settings['layout']}",
        ("rounds, after warm-up",): f"{settings['rounds']}, {settings['warmup']}",
        ("command",): f"`{record['command']}`",
    }


def figure_rows(variants: Mapping[str, Mapping[str, dict]]) -> dict[tuple[str, ...], str]:
    """A row for every variant and stage: what it takes, after its ratio to the first variant."""
    rows, first = {}, next(iter(variants))
    for variant, stages in variants.items():
        for stage, figure in stages.items():
            own = f"{figure['ms']:.4g} ms" if "ms" in figure else f"{figure['bytes'] / 2**20:.0f} MiB"
            rows[variant, stage] = own if variant == first else f"{ratio_text(figure)}, {own}"
    return rows


def ratio_text(figure: Mapping[str, float]) -> str:
    """A ratio, with its quartiles where it has some."""
    quartiles = f" ({figure['low']:.2f}–{figure['high']:.2f})" if "low" in figure else ""
    return f"{figure['ratio']:.2f}{quartiles}"
