"""Reading a config, and finding one's way in it."""
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config


class PreflightError(ValueError):
    """Why a run cannot start: the text names the setting or file, what is wrong with it and what was expected."""


def read_config(path: str) -> Config:
    """Read a config file with all its bases and custom imports.

    Raises:
        PreflightError: there is no such file, or it cannot be read, parsed or executed.
    """
    if not Path(path).is_file():
        raise PreflightError(f"config file {path}: there is no such file; check the path")
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is a Python program, and may fail as any program may
        raise PreflightError(f"config file {path}: {type(error).__name__}: {error}") from error


def dicts(node: Any) -> Iterator[dict]:
    """All dicts in a tree of dicts and lists, the outer ones first."""
    if isinstance(node, dict):
        yield node
        node = [value for _, value in node.items()]
    if isinstance(node, list | tuple):
        for child in node:
            yield from dicts(child)


def type_name(node: dict) -> str:
    """The name of a registered type, without the library's scope; '' for none."""
    kind = node.get("type", "")
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__


def is_local(path: object) -> bool:
    """Whether a setting is a path on this machine, of which something can be said."""
    return isinstance(path, str) and bool(path) and "://" not in path
