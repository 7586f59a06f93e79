"""Files are there whole or not at all: they are written under a temporary name and moved into place.

Several processes, of several hosts, may write to one folder: each has temporary names of its own, and while it writes
holds the lock of a file beside them. What a killed one has left is known by its lock, which nobody holds.
"""
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

#: What a file system says that has no hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_LOCK = re.compile(r"\.(?P<name>.+)\.(?P<run>[0-9a-f]{8})\.lock")


class DestinationError(ValueError):
    """A place that cannot be written to, or must not be: the message names it, the reason and the way out."""


def check_destination(path: Path, inputs: Iterable[Path], replace: bool = True) -> None:
    """Look at the place of a file that is to be written, before any work is done.

    Args:
        path: the file.
        inputs: what it is made from, also by a link or by another spelling.
        replace: whether a file that is there by now may go.

    Raises:
        DestinationError: it is one of the inputs, a folder, there and not to be replaced, or in a folder that is
            missing or not for writing.
    """
    for source in inputs:
        if os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
            raise DestinationError(f"{path}: is {source}, from which it would be made; choose another name")
    if path.is_dir():
        raise DestinationError(f"{path}: is a folder; expected the name of a file to write")
    if not path.parent.is_dir():
        raise DestinationError(f"{path}: the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise DestinationError(f"{path}: the folder {path.parent} may not be written to; choose another")
    if not replace and os.path.lexists(path):
        raise DestinationError(f"{path}: is there already, and is not replaced; choose another name or remove it first")


def check_folder(folder: Path, names: Iterable[str], inputs: Iterable[Path] = ()) -> None:
    """As :func:`check_destination`, of files in a folder that may have to be made yet.

    Raises:
        DestinationError: also where the folder is something else, or cannot be made.
    """
    nearest = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not nearest.is_dir():
        what = "a folder to write to, or a name for a new one"
        raise DestinationError(f"{folder}: expected {what}, but {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise DestinationError(f"{folder}: the folder {nearest} may not be written to; choose another")
    if nearest == folder:
        inputs = list(inputs)
        for name in names:
            check_destination(folder / name, inputs)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to: moved there where the block ends well, removed where it fails."""
    with beside(path, new_run()) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextmanager
def placing(path: Path) -> Iterator[Path]:
    """As :func:`replacing`, but what is there by then stays.

    Raises:
        FileExistsError: where the block ends and something is there.
    """
    with beside(path, new_run()) as temporary:
        yield temporary
        try:
            os.link(temporary, path)  # unlike os.replace, it fails where something is there
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            os.replace(temporary, path)


def new_run() -> str:
    """What tells temporary names from those of others; processes that write something together need the same.

    It is not the process's id: a thread, or a process of another host with the same disk, may have the same.
    """
    return secrets.token_hex(4)


def unfinished(path: Path, run: str) -> Path:
    """The name, beside ``path``, of what is on its way there in this run."""
    return path.with_name(f".{path.name}.{run}.tmp")


@contextmanager
def beside(path: Path, run: str) -> Iterator[Path]:
    """The name of :func:`unfinished` for a block, locked: what has that name goes with its end, or with the next one.

    Where there can be no lock, it does without.
    """
    remove_abandoned(path.parent, path.name.__eq__)
    temporary = unfinished(path, run)
    lock = temporary.with_suffix(".lock")
    with ExitStack() as stack:
        with suppress(OSError):
            file = stack.enter_context(lock.open("xb"))
            stack.callback(discard, lock)
            if not _locks(file):
                discard(lock)  # free to all, it would say that its process is dead
        stack.callback(discard, temporary)
        yield temporary


def remove_abandoned(folder: Path, is_ours: Callable[[str], object]) -> None:
    """Remove what killed processes have left half-written in a folder, and leave that of living ones.

    ``is_ours`` tells by its name what may go: ``epoch_2.pth`` for what was on its way there.
    """
    for lock in list(folder.glob(".*.lock")):
        found = _LOCK.fullmatch(lock.name)
        if found and is_ours(found["name"]):
            with suppress(OSError), lock.open("r+b") as file:  # gone meanwhile, or of another user
                if _locks(file):
                    discard(unfinished(folder / found["name"], found["run"]))
                    discard(lock)


def discard(path: Path) -> None:
    """Remove a file, a folder or a link, or nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink(missing_ok=True)


def _locks(file: BinaryIO) -> bool:
    """Lock an open file until it is closed; False where somebody has locked it, or there are no locks."""
    try:
        import fcntl  # not on Windows

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
