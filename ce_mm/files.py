"""Files are there whole or not at all: they are written under a temporary name and moved into place."""
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What a file system says that has no hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


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


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)
