"""What a user types: each module a command of ``ce_mm``, whose ``main`` reads the command line.

They import what does the work when they have parsed their arguments: a help, or a wrong option, is there at once.
"""
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path


def add_class_options(parser: ArgumentParser) -> None:
    """Give a command the two ways of naming a detector's classes."""
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--config", type=Path, help="config of the model, for the names of its classes (needs mmengine)")
    names.add_argument("--classes", nargs="+", metavar="NAME", help="names of the model's classes")


def named_classes(args: Namespace) -> Sequence[str] | None:
    """The classes that a command line with these options names; None if it names none.

    Raises:
        ValueError, MissingRequirementError: as of :func:`~ce_mm.evaluation.classes.read_classes`, and without mmengine.
    """
    if args.config is None:
        return args.classes
    from ce_mm.evaluation.classes import read_classes

    return read_classes(args.config)


def run_upstream(task: str) -> int:
    """Run mmdet's or mmpretrain's own ``train`` or ``test`` on the command line; returns the exit code."""
    try:
        try:
            from ce_mm.launching import launch  # takes seconds, in which Ctrl-C must work as well
        except ImportError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return launch(task, sys.argv[1:])
    except KeyboardInterrupt:
        return 130
