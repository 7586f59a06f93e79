"""Saving without a moment at which a checkpoint is half there: beside its place, flushed to disk, then moved into it.

What :mod:`ce_mm.files` does for a process that fails holds here for a machine that fails as well; a folder (one part
from each rank) is moved like a file; and the error says how to go on.
"""
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ce_mm.files import beside, discard

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: What a file system says that cannot flush a folder by itself.
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF)


@contextmanager
def saving(path: Path, run: str) -> Iterator[Path]:
    """A temporary name to save to: flushed and moved to ``path`` where the block ends well, removed where it fails.

    Whenever the process is killed or the machine goes down, ``path`` is what it was before or what it is afterwards.
    (Only a folder that replaces a folder is moved in two steps, between which there is none.) The ``run`` is one of
    :func:`ce_mm.files.new_run` for all processes.

    Raises:
        OSError: writing, flushing or moving failed; the text names the file, the bytes written and the bytes free.
    """
    with suppress(OSError):  # whoever writes to it says what is wrong
        path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path, run) as temporary:
        try:
            yield temporary
            _put_in_place(temporary, path)
        except OSError as error:
            raise _explained(error, path, temporary) from error


def _put_in_place(temporary: Path, path: Path) -> None:
    for part in temporary.rglob("*") if temporary.is_dir() else ():
        _flush(part)
    _flush(temporary)
    if temporary.is_dir():
        discard(path)  # os.replace replaces no folder that holds something
    os.replace(temporary, path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_FLUSH):
            raise
    finally:
        os.close(descriptor)


def _explained(error: OSError, path: Path, temporary: Path) -> OSError:
    written = temporary.stat().st_size if temporary.is_file() else 0
    free = f"{shutil.disk_usage(path.parent).free:,}" if path.parent.is_dir() else "no"
    if error.errno in _FULL:
        advice = "Make room, or keep fewer checkpoints (default_hooks.checkpoint.max_keep_ckpts),"
    else:
        advice = "Check the disk and the rights of the folder,"
    return OSError(
        error.errno,
        f"{path} was not saved ({error.strerror or error}): {written:,} bytes of it were written and {free} bytes are "
        f"free in its folder. The checkpoints before it are whole. {advice} then go on with --resume",
    )
