"""The command line that the benchmarks share: options, defaults, errors, and what is written in the end."""
import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ce_mm.files import check_folder
from tools.evidence.benchmark import records
from tools.evidence.benchmark.measure import keep_freed_memory
from tools.evidence.benchmark.records import Benchmark
from tools.evidence.benchmark.settings import DTYPES, LAYOUTS, Settings
from tools.evidence.pages import command_line


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with ``--out`` and the options that make :class:`Settings`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the records, to which this run is added")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--batch", type=int, help="samples (default: 8; 64 on a GPU)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the maps (default: float32; bfloat16 on a GPU)")
    parser.add_argument("--layout", choices=LAYOUTS, help="of the maps (default: contiguous; channels-last on a GPU)")
    parser.add_argument("--warmup", type=int, help="rounds before the first that counts")
    parser.add_argument("--rounds", type=int, help="rounds that count, at least 2")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds: does it run at all?")
    return parser


def settings_from(args: argparse.Namespace, rounds: Mapping[str, Mapping[str, int]]) -> Settings:
    """The settings of a command line.

    Args:
        args: what a parser of :func:`make_parser` returned.
        rounds: for ``cpu`` and ``cuda``, ``warmup`` and ``rounds`` (and other settings) where they are not given.

    Raises:
        ValueError: a value that :class:`Settings` does not take.
    """
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda":
        values = dict(batch=64, dtype="bfloat16", layout="channels-last")
    else:
        values = dict(batch=8, dtype="float32", layout="contiguous")
    values |= dict(device=device, quick=args.quick, **rounds[device])
    if args.quick:
        values |= dict(batch=2, warmup=0, rounds=2)
    given = {name: getattr(args, name) for name in ("batch", "dtype", "layout", "warmup", "rounds")}
    return Settings(**values | {name: value for name, value in given.items() if value is not None})


def run(
    benchmark: Benchmark,
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    rounds: Mapping[str, Mapping[str, int]],
    measure: Callable[[Settings, argparse.Namespace], dict],
) -> int:
    """Parse, measure and add a record; bad input ends with one line and status 2.

    Args:
        benchmark: which.
        parser: of :func:`make_parser`, with options of the benchmark's own.
        arguments: the command line without the program.
        rounds: see :func:`settings_from`.
        measure: from the settings and the parsed options to what is measured, with ``notes`` on this run alone.
    """
    args = parser.parse_args(arguments)
    try:
        settings = settings_from(args, rounds)
        check_folder(args.out, [f"{benchmark.name}.{suffix}" for suffix in ("json", "md", "png")])
        records.read(args.out, benchmark)
        keep_freed_memory()
        torch.manual_seed(0)
        record = dict(
            machine=records.machine(settings.device),
            settings=asdict(settings),
            command=command_line(f"benchmark.{benchmark.name}", arguments),
        )
        records.add(args.out, benchmark, record | measure(settings, args))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def check_plain(settings: Settings) -> None:
    """Raise ValueError unless the settings are those of exported networks: the CPU, float32, contiguous."""
    for name, value in dict(device="cpu", dtype="float32", layout="contiguous").items():
        if getattr(settings, name) != value:
            raise ValueError(f"--{name}: this benchmark has {value} alone, not {getattr(settings, name)}")
