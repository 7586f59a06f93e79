"""Saving without a moment at which a checkpoint is half there: beside its place, flushed to disk, then moved into it.

What :mod:`ce_mm.files` does for a process that fails holds here for a machine that fails as well; a folder (one part
from each rank) is moved like a file; and the error says how to go on.

Several runs may save to one folder, from several hosts: each has temporary names of its own, and while it saves holds
the lock of a file beside them. What a dead process has left is known by its lock, which nobody holds.
"""
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ce_mm import files

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: What a file system says that cannot flush a folder by itself.
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF)
_LOCK = re.compile(r"\.(?P<name>.+)\.(?P<run>[0-9a-f]{8})\.lock")


def new_run() -> str:
    """A name by which temporary files are told from those of other runs; all processes of a run need the same."""
    return secrets.token_hex(4)


def unfinished(path: Path, run: str) -> Path:
    """The name, beside ``path``, of what is on its way there in this run."""
    return path.with_name(f".{path.name}.{run}.tmp")


@contextmanager
def saving(path: Path, run: str) -> Iterator[Path]:
    """A temporary name to save to: flushed and moved to ``path`` where the block ends well, removed where it fails.

    Whenever the process is killed or the machine goes down, ``path`` is what it was before or what it is afterwards;
    at most the temporary name (:func:`unfinished`) and its lock stay behind, for :func:`remove_unfinished`. (Only a
    folder that replaces a folder is moved in two steps, between which there is none.)

    Raises:
        OSError: writing, flushing or moving failed; the text names the file, the bytes written and the bytes free.
    """
    temporary = unfinished(path, run)
    with _locked(temporary.with_suffix(".lock")):
        try:
            yield temporary
            _put_in_place(temporary, path)
        except OSError as error:
            raise _explained(error, path, temporary) from error
        finally:
            discard(temporary)


def remove_unfinished(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Remove what dead processes have left half-written in a folder, and leave that of living ones.

    Args:
        folder: where they saved.
        is_ours: tells by its name what may go: ``epoch_2.pth`` for what was on its way there.
    """
    for lock in list(folder.glob(".*.lock")):
        found = _LOCK.fullmatch(lock.name)
        if found and is_ours(found["name"]):
            with suppress(OSError), ExitStack() as stack:  # held, gone meanwhile, or where locks say nothing
                descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
                stack.callback(os.close, descriptor)
                files.lock(descriptor)
                discard(unfinished(folder / found["name"], found["run"]))
                discard(lock)


def discard(path: Path) -> None:
    """Remove a file, a folder or a link, or nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink(missing_ok=True)


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Hold a lock that is there no longer than it is held; where there can be none, do without."""
    with ExitStack() as stack:
        with suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            stack.callback(os.close, descriptor)
            stack.callback(discard, lock)
            try:
                files.lock(descriptor)
            except OSError:
                discard(lock)  # free to all, it would say that its process is dead
        yield


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
