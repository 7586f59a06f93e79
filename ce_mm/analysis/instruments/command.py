"""The command line that all instruments share: CONFIG CHECKPOINT, and where to write."""
import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from mmengine.config import DictAction

from ce_mm.analysis.instruments.source import Source
from ce_mm.compat.requirements import MissingRequirementError


class _Settings(DictAction):
    """mmengine's action, but for a traceback where a word has no ``=``."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, words: list, *rest: str) -> None:
        wrong = [word for word in words if "=" not in word]
        if wrong:
            parser.error(f"--cfg-options: expected key=value, got {wrong[0]!r}")
        super().__call__(parser, namespace, words, *rest)


def instrument_parser(description: str, with_data: bool = True) -> argparse.ArgumentParser:
    """A parser with the arguments of a :class:`Source` and ``--out``.

    Args:
        description: of the command, as --help shows it.
        with_data: whether the instrument looks at pictures.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file of a classifier or detector")
    parser.add_argument("checkpoint", help="weights that fit it")
    if with_data:
        parser.add_argument("--samples", type=int, help="take so many pictures, spread evenly (default: all)")
        parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--cfg-options", nargs="+", action=_Settings, help="settings to replace, key=value")
    parser.add_argument(
        "--out", type=Path, help="folder for the JSON file and the picture (default: analysis/ beside the checkpoint)"
    )
    return parser


def run(
    arguments: argparse.Namespace,
    instrument: Callable[[Source, Path], dict],
    table: Callable[[dict], str],
) -> int:
    """Use an instrument, and print what it found.

    Args:
        arguments: what :func:`instrument_parser`'s parser gave.
        instrument: takes what is to be measured and the folder to write to, and gives its report.
        table: the report as text.

    Returns:
        0, or 2 after one line on stderr where the input is at fault.
    """
    source = Source(
        arguments.config,
        arguments.checkpoint,
        arguments.cfg_options,
        getattr(arguments, "device", "cpu"),
        getattr(arguments, "samples", None),
    )
    try:
        out = _folder(arguments)
        print(table(instrument(source, out)))
    except (ValueError, OSError, MissingRequirementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"\nWritten to {out}")
    return 0


def _folder(arguments: argparse.Namespace) -> Path:
    if arguments.out is not None:
        return arguments.out
    if "://" in arguments.checkpoint:
        raise ValueError(f"{arguments.checkpoint} is on no disk here; say where to write: --out FOLDER")
    return Path(arguments.checkpoint).parent / "analysis"
