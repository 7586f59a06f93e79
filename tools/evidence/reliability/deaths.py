"""What may happen at any system call by which a checkpoint is saved: here, at a chosen one of them, it happens."""
import errno
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend

_NAMES = ("fsync", "replace", "unlink", "remove")


def dying_while_saving(checkpoint: str, after: int, note: Path) -> AbstractContextManager:
    """Within it, this process kills itself by SIGKILL at a system call while it saves.

    Args:
        checkpoint: part of the checkpoint's name.
        after: how many calls to let pass; a write is cut in its middle.
        note: file that says afterwards which call it was.
    """

    def die(call: str) -> None:
        note.write_bytes(call.encode())
        os.kill(os.getpid(), signal.SIGKILL)

    return interrupting(checkpoint, after, die)


def of_any_run(name: str) -> str:
    """The name of a temporary file or its lock, without the part that tells one run from another."""
    return re.sub(r"\.[0-9a-f]{8}(?=\.(tmp|lock)$)", "", name)


def fail(code: int) -> Callable[[str], None]:
    """For :func:`interrupting`: what the system says by this error number."""

    def raise_error(call: str) -> None:
        raise OSError(code, os.strerror(code), call)

    return raise_error


DISK_FULL = fail(errno.ENOSPC)


@contextmanager
def interrupting(checkpoint: str, after: int, act: Callable[[str], None]) -> Iterator[list[str]]:
    """Count write, fsync, replace and unlink from the one on that begins to write ``checkpoint``, and interrupt one.

    Args:
        checkpoint: part of its name; while it is being written, its temporary name has it too.
        after: how many calls to let pass.
        act: called in place of the one after these, with its name and file, and half done if it is a write.

    Yields:
        The calls so far, by name and file.
    """
    calls: list[str] = []

    def before(name: str, path: Any, half: Callable[[], object] = lambda: None) -> None:
        if calls or (name == "write" and checkpoint in str(path)):
            calls.append(f"{name} {'the folder' if Path(path).is_dir() else of_any_run(Path(path).name)}")
            if len(calls) == after + 1:
                half()
                act(calls[-1])

    put, write_text, system = LocalBackend.put, Path.write_text, {name: getattr(os, name) for name in _NAMES}

    def counted_put(backend: LocalBackend, data: bytes, path: str) -> None:
        before("write", path, lambda: put(backend, data[: len(data) // 2], path))
        put(backend, data, path)

    def counted_write_text(path: Path, text: str, *args: Any, **kwargs: Any) -> int:
        before("write", path, lambda: path.write_bytes(text.encode()[: len(text) // 2]))
        return write_text(path, text, *args, **kwargs)

    def counted_fsync(descriptor: int) -> None:
        before("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        system["fsync"](descriptor)

    def counted_replace(source: Any, destination: Any, **kwargs: Any) -> None:
        before("replace", destination)
        system["replace"](source, destination, **kwargs)

    def counted_unlink(path: Any, **kwargs: Any) -> None:
        before("unlink", path)
        system["unlink"](path, **kwargs)

    LocalBackend.put, Path.write_text = counted_put, counted_write_text
    os.fsync, os.replace, os.unlink, os.remove = counted_fsync, counted_replace, counted_unlink, counted_unlink
    try:
        yield calls
    finally:
        LocalBackend.put, Path.write_text = put, write_text
        for name, function in system.items():
            setattr(os, name, function)
