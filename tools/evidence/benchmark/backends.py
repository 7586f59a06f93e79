"""CE twice in one process: in plain PyTorch calls, and compiled, on the backend that a user has without asking."""
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch

from ce_mm.ops import choose
from ce_mm.ops.backends import plain
from tools.evidence.benchmark.settings import DTYPES, Settings

PLAIN, COMPILED = "CE plain", "CE compiled"
NOTE = (
    f"*{PLAIN}*: CE in plain PyTorch calls (`CE_MM_BACKEND=plain`). *{COMPILED}*: the same layers on the backend that "
    "runs them by default, Numba's on a CPU, Triton's on a GPU; both take turns in one process."
)
_VARIABLE = "CE_MM_BACKEND"
_T = TypeVar("_T")


def on_each(variants: Mapping[str, _T], settings: Settings) -> dict[str, _T]:
    """``CE`` under the name of each backend that there is for the run's maps, all else as it is."""
    names = [PLAIN] if _compiled(settings) is None else [PLAIN, COMPILED]
    return {new: value for name, value in variants.items() for new in (names if name == "CE" else [name])}


def notes(settings: Settings) -> list[str]:
    """What the compiled backend is, or that there is none."""
    name, maps = _compiled(settings), f"{settings.dtype} on {settings.device}"
    if name is None:
        return [f"{COMPILED} is left out: no compiled backend reaches {maps} here"]
    return [f"{COMPILED}: {name}, for {maps}"]


def turn(name: str | tuple) -> AbstractContextManager[None]:
    """What everything of a variant runs in, its backward too.

    Args:
        name: of the variant, or a tuple that begins with it.
    """
    return _plain() if PLAIN in (name, name[0]) else nullcontext()


@contextmanager
def _plain() -> Iterator[None]:
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "plain"
    choose.cache_clear()
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before
        choose.cache_clear()


def _compiled(settings: Settings) -> str | None:
    backend = choose(torch.device(settings.device), DTYPES[settings.dtype], 16)
    return None if backend is plain else backend.__name__.rpartition(".")[2]
