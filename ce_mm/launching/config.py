"""Reading a config, and finding one's way in it, whether its types are names or, in a pure Python config, classes."""
import importlib.util
import logging
import os
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope, Registry

SCOPES = ("mmpretrain", "mmdet")
"""The libraries whose configs are known here."""


class PreflightError(ValueError):
    """Why a run cannot start: the text names the setting or file, what is wrong with it and what was expected."""


def config_path(name: str) -> str:
    """Where a config lies: a path as it is, and of ``package::path`` the file that the package has installed.

    These are the names that mmengine takes in ``_base_``, and ``ce_mm::`` for the configs of this package.

    Raises:
        PreflightError: there is no such package, or it has no such config.
    """
    package, _, below = name.partition("::")
    if not below or Path(name).is_file():
        return name
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise PreflightError(f"config {name}: there is no package {package!r}; expected ce_mm, {' or '.join(SCOPES)}")
    home = Path(spec.origin).parent
    # Where mim looks; and of a package that is used from its repository, whose configs lie beside it.
    found = [folder for folder in (home / ".mim/configs", home.parent / "configs") if folder.is_dir()]
    if not found:
        raise PreflightError(f"config {name}: {package} was installed without its configs; reinstall it with pip")
    if not (found[0] / below).is_file():
        raise PreflightError(f"config {name}: there is no such config; expected one below {found[0]}")
    return str(found[0] / below)


def read_config(path: str, options: dict | None = None) -> Config:
    """Read a config with all its bases and custom imports, and replace settings of it.

    Args:
        path: a file, or a name that :func:`config_path` knows.
        options: setting -> value.

    Raises:
        PreflightError: there is no such file, it cannot be read, parsed or executed, or an option reaches for what it
            does not have.
    """
    path = config_path(path)
    if not Path(path).is_file():
        raise PreflightError(f"config file {path}: there is no such file; check the path")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a Python program, and may fail as any program may
        raise PreflightError(f"config file {path}: {one_line(error)}") from error
    try:
        cfg.merge_from_dict(options or {})
    except Exception as error:  # depends on what stands in the config at that place
        raise PreflightError(f"--cfg-options {options}: {one_line(error)}") from error
    return cfg


@contextmanager
def at(setting: str) -> Iterator[None]:
    """Say of an error, whose text names the file, which setting has led to it.

    Raises:
        PreflightError: the block raises OSError or ValueError.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise PreflightError(f"{setting}: {error}") from error


@contextmanager
def silence() -> Iterator[None]:
    """Run a block without what the libraries print, log and warn of."""
    disabled = logging.root.manager.disable
    logging.disable()
    try:
        with (
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere),
            warnings.catch_warnings(action="ignore"),
            # mmengine's loggers go with the block: they would remember what is disabled, and that this is stdout.
            patch.object(MMLogger, "_instance_dict", OrderedDict()),
        ):
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def trial(complaint: str, scope: str | None) -> Iterator[None]:
    """Run a block in a scope of mmengine's, without a word: what is to be said is for the run itself to say.

    Raises:
        PreflightError: the block fails; ``complaint``, why, and where.
    """
    try:
        with silence(), DefaultScope.overwrite_default_scope(scope):
            yield
    except Exception as error:  # whatever upstream's code or the user's makes of its settings
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise PreflightError(f"{complaint}: {one_line(error)} ({place.filename}, line {place.lineno})") from error


def one_line(error: Exception) -> str:
    """What an error of other code says, and its kind, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def scope_of(cfg: Config) -> str:
    """Whose config it is: its default_scope, or the library that its model comes from.

    Raises:
        PreflightError: neither says it.
    """
    scope = cfg.get("default_scope")
    if scope in SCOPES:
        return scope
    model = cfg.get("model")
    kind = registered(MODELS, model, default_scope(cfg)) if isinstance(model, dict) else None
    for base in getattr(kind, "__mro__", ()):
        package = base.__module__.partition(".")[0]
        if package in SCOPES:
            return package
    raise PreflightError(
        f"the config's default_scope is {scope!r}, and its model is of no library that is known here; expected the "
        f"default_scope {' or '.join(map(repr, SCOPES))}"
    )


def default_scope(cfg: Config) -> str | None:
    """The scope in which mmengine's Runner takes the names of a config: its own one if the config says nothing."""
    return cfg.get("default_scope", "mmengine")


def registered(registry: Registry, node: dict, scope: str | None, setting: str | None = None) -> Any:
    """What the type of a setting stands for, seen from a scope: a class or function; None if nothing has its name.

    Raises:
        PreflightError: nothing has its name, and ``setting`` says where it stands.
    """
    kind = node.get("type")
    if isinstance(kind, str):
        with DefaultScope.overwrite_default_scope(scope), registry.switch_scope_and_registry(None) as nearest:
            kind = nearest.get(kind)
    if kind is None and setting is not None:
        raise PreflightError(
            f"{setting}: the type {node.get('type')!r} is unknown in {scope}; expected a registered name (one of your "
            "own: put its module into custom_imports)"
        )
    return kind


def inherits(kind: Any, name: str, *methods: str) -> bool:
    """Whether ``kind`` is a class of that full name, or one derived from it that has left these methods as they are."""
    for base in getattr(kind, "__mro__", ()):
        if f"{base.__module__}.{base.__qualname__}" == name:
            return all(getattr(kind, method) is getattr(base, method) for method in methods)
    return False


def dicts(node: Any) -> Iterator[dict]:
    """All dicts in a tree of dicts and lists, the outer ones first."""
    if isinstance(node, dict):
        yield node
    for child in children(node):
        yield from dicts(child)


def children(node: Any) -> list:
    """What a dict or list holds; nothing of anything else."""
    return list(node.values()) if isinstance(node, dict) else list(node) if isinstance(node, list | tuple) else []


def steps_of_test(cfg: Config) -> list:
    """What the config's test does to a picture before the model gets it, step by step; empty if it does not say."""
    pipelines = (node.get("pipeline") for node in dicts(cfg.get("test_dataloader")))
    return next((steps for steps in pipelines if isinstance(steps, list)), [])


def type_name(node: dict) -> str:
    """The name of a registered type, without the library's scope; '' for none."""
    kind = node.get("type", "")
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__


def is_local(path: object) -> bool:
    """Whether a setting is a path on this machine, of which something can be said."""
    return isinstance(path, str) and bool(path) and "://" not in path
