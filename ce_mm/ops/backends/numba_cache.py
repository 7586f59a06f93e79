"""Where compiled functions are kept, so that a machine compiles them once.

The place is ``ce_mm`` in the folder that ``NUMBA_CACHE_DIR`` names, or else in the user's cache, ``XDG_CACHE_HOME`` or
``~/.cache``. In it is a folder for each state of what functions are compiled from and for: Numba by itself would look
at nothing but the one file that a function stands in. Such folders may be deleted at any time.

What lies there is run, so a folder that another user could have written to is not used. Where there is no folder, each
process compiles for itself. Of several that begin at once, one compiles, and the others wait for it.
"""
import functools
import hashlib
import logging
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import llvmlite
import llvmlite.binding as llvm
import numba

from ce_mm.ops.reweighting import MIN_VARIANCE
from ce_mm.ops.types import FAR_SQUARED

try:
    import fcntl
except ImportError:  # there are no such locks, and processes that begin at once all compile
    fcntl = None  # type: ignore[assignment]

config: Any = numba.config  # whose settings are put into it while it is imported
#: The first one that can be told where to keep what it compiles.
OLDEST = (0, 62)
if numba.version_info.short < OLDEST:
    raise ImportError(f"Numba {numba.__version__} is older than {'.'.join(map(str, OLDEST))}")

#: Seconds to wait for a process that compiles, which may have been stopped in the middle of it.
PATIENCE = 120
#: What has kept this process from keeping what it compiled.
failures: list[OSError] = []


def compiled(function: Callable, signature: Any, **options: Any) -> Any:
    """``numba.cfunc(signature, **options)(function)``, compiled now or found where it is kept."""
    try:
        place = folder()
        if _is_kept(place, function):
            with suppress(Exception):  # it is damaged, which shows in as many ways as there are damages
                return _kept(function, signature, options)
            _remove(place, function)
        with _alone(place):
            if not _is_kept(place, function):
                _announce(f"They are kept in {place}; `ce_mm warmup` makes them ahead of the first use.")
            return _kept(function, signature, options)
    except OSError as error:
        failures.append(error)
        _announce(f"They are not kept ({error}); NUMBA_CACHE_DIR may name a folder for them.")
        return numba.cfunc(signature, **options)(function)


def folder() -> Path:
    """Where what this process compiles is kept; it is made if it is not there.

    Raises:
        OSError: there is none, or one that another user could have written to.
    """
    place = _of_the_user()
    place.mkdir(parents=True, exist_ok=True)
    for name in ("ce_mm", _state()):
        place /= name
        with suppress(FileExistsError):
            place.mkdir(mode=0o755)
        if not _is_ours(place.stat()):
            raise PermissionError(f"{place} is another user's, or others may write to it")
    return place


def _of_the_user() -> Path:
    named = config.CACHE_DIR or os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from error


def _is_ours(found: os.stat_result) -> bool:
    """Whether nobody but this user and the machine's own, who made an image perhaps, can have written there."""
    if not hasattr(os, "geteuid"):  # folders of users are not open to others there
        return True
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@functools.cache
def _state() -> str:
    """A name for all that what is compiled depends on."""
    features = llvm.get_host_cpu_features().flatten()
    compiler = sys.version_info[:2], numba.__version__, llvmlite.__version__, config.CPU_NAME, config.CPU_FEATURES
    digest = hashlib.sha256(repr((compiler, llvm.get_host_cpu_name(), features, FAR_SQUARED, MIN_VARIANCE)).encode())
    for source in sorted(Path(__file__).parent.glob("numba_*")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _is_kept(place: Path, function: Callable) -> bool:
    return any(_files(place, function, "nbc"))


def _files(place: Path, function: Callable, ending: str) -> Iterator[Path]:
    """Numba's: an index, nbi, and after it the code, nbc."""
    return place.glob(f"*.{function.__name__}-*.{ending}")


def _remove(place: Path, function: Callable) -> None:
    for path in _files(place, function, "nb?"):
        path.unlink(missing_ok=True)


def _kept(function: Callable, signature: Any, options: dict[str, Any]) -> Any:
    """By Numba's own cache, in our place."""
    before = config.CACHE_LOCATOR_CLASSES
    config.CACHE_LOCATOR_CLASSES = f"{__name__}.{Locator.__name__}"
    try:
        return numba.cfunc(signature, cache=True, **options)(function)
    finally:
        config.CACHE_LOCATOR_CLASSES = before


class Locator:
    """Answers what Numba's cache asks of one function's place; see ``NUMBA_CACHE_LOCATOR_CLASSES`` in its manual."""

    def __init__(self, function: Callable, file: str) -> None:
        self._line, self._file = function.__code__.co_firstlineno, file

    @classmethod
    def from_function(cls, function: Callable, file: str) -> Self:
        """The function's, which stands in this file."""
        return cls(function, file)

    def get_cache_path(self) -> str:
        """The folder."""
        return str(folder())

    def ensure_cache_path(self) -> None:
        """It has been made."""

    def get_source_stamp(self) -> str:
        """What changes with the file: a function of somebody else's, compiled at this moment, is kept here too."""
        return hashlib.sha256(Path(self._file).read_bytes()).hexdigest()

    def get_disambiguator(self) -> str:
        """Which of the functions of one name it is."""
        return str(self._line)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """While no other process compiles, of those that see this folder."""
    with open(place / "lock", "ab") as lock:
        end = time.monotonic() + PATIENCE
        while not _locked(lock.fileno()) and time.monotonic() < end:
            time.sleep(0.1)
        yield


def _locked(lock: int) -> bool:
    """Whether the lock is ours now, or there are no locks on this file system."""
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@functools.cache
def _announce(where: str) -> None:
    logging.getLogger(__name__).warning(
        "Channel Equilibrium compiles its passes for this CPU, which takes ten to twenty seconds. %s", where
    )
