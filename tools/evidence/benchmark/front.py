"""The command line that both benchmarks share: options, defaults, errors, and what is written in the end."""
import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ce_mm.files import check_folder
from tools.evidence.benchmark import report
from tools.evidence.benchmark.measure import keep_freed_memory
from tools.evidence.benchmark.settings import DTYPES, LAYOUTS, Settings


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that make :class:`Settings`, and ``--out`` or ``--plot``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--out", type=Path, help="folder for the numbers (.json), the table (.md), the picture (.png)")
    action.add_argument("--plot", type=Path, metavar="FILE.json", help="only draw the picture of these numbers again")
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
        rounds: for ``cpu`` and ``cuda``, ``warmup`` and ``rounds`` where they are not given.

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
    benchmark: str,
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    rounds: Mapping[str, Mapping[str, int]],
    measure: Callable[[Settings, argparse.Namespace], dict],
    table: Callable[[dict], str],
) -> int:
    """Parse, measure and write, or only draw; bad input ends with one line and status 2.

    Args:
        benchmark: its name; the files are called by it and the device.
        parser: of :func:`make_parser`, with options of the benchmark's own.
        arguments: the command line without the program.
        rounds: see :func:`settings_from`.
        measure: from the settings and the parsed options to the numbers.
        table: from the numbers to a page of Markdown.
    """
    args = parser.parse_args(arguments)
    try:
        if args.plot:
            report.draw(args.plot)
            return 0
        settings = settings_from(args, rounds)
        name = f"{benchmark}_{settings.device}"
        check_folder(args.out, [f"{name}.{suffix}" for suffix in ("json", "md", "png")])
        keep_freed_memory()
        torch.manual_seed(0)
        numbers = dict(
            benchmark=benchmark,
            command=report.command_line(benchmark, arguments),
            machine=report.machine(settings.device),
            settings=asdict(settings),
        )
        numbers |= measure(settings, args)
        args.out.mkdir(parents=True, exist_ok=True)
        report.write_with_picture(args.out, name, numbers, table(numbers))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
