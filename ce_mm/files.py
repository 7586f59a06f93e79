"""Files are there whole or not at all: they are written under a temporary name and moved into place."""
import errno
import glob
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

#: What a file system says that has no hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class DestinationError(ValueError):
    """A place that cannot be written to, or must not be: the message names it, the reason and the way out."""


def check_destination(path: Path, inputs: Iterable[Path], replace: bool = True) -> None:
    """Look at the place of a file that is to be written, before any work is done.

    Args:
        path: the file.
        inputs: what it is made from; a link to one of these, or another spelling of its name, is that one.
        replace: whether a file that is there by now may go.

    Raises:
        DestinationError: it is one of the inputs, a folder, there and not to be replaced, or in a folder that is
            missing or not for writing.
    """
    for source in inputs:
        if _is_same(path, source):
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
    """Look at the places of files in a folder, which may have to be made yet, before any work is done.

    Args:
        folder: where they are to be written.
        names: theirs.
        inputs: as for :func:`check_destination`.

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


def _is_same(path: Path, source: Path) -> bool:
    try:
        return os.path.samefile(path, source)
    except OSError:  # one of them is not there
        return os.path.realpath(path) == os.path.realpath(source)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to: moved there where the block ends well, removed where it fails."""
    with _beside(path) as unfinished:
        yield unfinished
        os.replace(unfinished, path)


@contextmanager
def placing(path: Path) -> Iterator[Path]:
    """As :func:`replacing`, but what is there by then stays.

    Raises:
        FileExistsError: where the block ends and something is there.
    """
    with _beside(path) as unfinished:
        yield unfinished
        try:
            os.link(unfinished, path)  # unlike os.replace, it fails where something is there
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            os.replace(unfinished, path)


def lock(file: int | IO) -> None:
    """Lock an open file, or its descriptor, until it is closed.

    Raises:
        OSError: somebody has locked it, or there are no locks on this file system.
    """
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP)) from error
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes have left beside ``path``: it has no lock any more."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError), left.open("rb") as file:
            lock(file)  # fails where its process lives, or nobody can tell
            left.unlink()


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    remove_abandoned(path)
    # Not by the process's id: a thread, or a process of another host with the same disk, may have the same.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with unfinished.open("xb") as file:
        try:
            with suppress(OSError):  # a file system without locks
                lock(file)
            yield unfinished
        finally:
            unfinished.unlink(missing_ok=True)
