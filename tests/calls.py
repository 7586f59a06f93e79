"""What one call runs inside of ce_mm, by ``sys.setprofile``: how many calls, in how many files, how deep.

A call is a start of a Python frame whose code lies in the package: of a function, a lambda, a comprehension (up to
Python 3.11 it has a frame), and each time that a generator goes on. What runs in C, in PyTorch or anywhere else is
neither counted nor a level of depth; the package's own functions below it are, as an autograd function's forward.
"""
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from traceback import walk_stack
from types import FrameType
from typing import Any

import ce_mm

PACKAGE = Path(ce_mm.__file__).parent


class Calls:
    """What happened in the package while a function ran."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self.functions: Counter[tuple[str, str]] = Counter()  #: calls, by file and qualified name
        self.changes = 0  #: of file: steps into a function of another file than its caller's in the package, and back
        self.depth = 0
        sys.setprofile(self._see)
        try:
            function(*args)
        finally:
            sys.setprofile(None)

    @property
    def number(self) -> int:
        """Of all calls."""
        return self.functions.total()

    @property
    def files(self) -> set[str]:
        """Those with a function that was called."""
        return {file for file, _ in self.functions}

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not _is_ours(frame):
            return
        road = [_file(each) for each, _ in walk_stack(frame) if _is_ours(each)]
        self.functions[road[0], frame.f_code.co_qualname] += 1
        self.changes += 2 * (len(road) > 1 and road[0] != road[1])
        self.depth = max(self.depth, len(road))

    def __str__(self) -> str:
        head = f"{self.number} calls, {len(self.files)} files, {self.changes} changes of file, depth {self.depth}"
        rows = [f"{count:4}  {file}  {name}" for (file, name), count in sorted(self.functions.items())]
        return "\n".join([head, *rows])


def _is_ours(frame: FrameType) -> bool:
    return Path(frame.f_code.co_filename).is_relative_to(PACKAGE)


def _file(frame: FrameType) -> str:
    return str(Path(frame.f_code.co_filename).relative_to(PACKAGE))
