"""Thin fronts of upstream's own tools: mmdet's or mmpretrain's train.py and test.py, whichever a config asks for.

The options are upstream's, parsed by upstream's parser, and upstream's ``main()`` does the work. In front of it stand
``import ce_mm``, as they import mmcv's operators before they read a config, and the checks of `preflight`, which see
the config as upstream's ``main()`` would hand it to its runner.
"""
import importlib.util
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NoReturn
from unittest.mock import patch

from mmengine.config import Config

from ce_mm.compat.requirements import MissingRequirementError, require
from ce_mm.compat.without_gpu import launch_without_gpu
from ce_mm.launching.config import PreflightError, config_path, one_line, read_config, scope_of
from ce_mm.launching.preflight import Task, check

CONFIG_SUFFIXES = (".py", ".json", ".yaml", ".yml")


def launch(task: Task, argv: Sequence[str]) -> int:
    """Run upstream's tool on a command line.

    Args:
        task: which tool.
        argv: the arguments without the program's name. The config among them, a file or a name that
            :func:`~ce_mm.launching.config.config_path` knows, decides whose options the others are.

    Returns:
        0, or 2 after one line on stderr if the run could not start. Upstream's parser exits by itself, with the usage
        where it refuses the command line.
    """
    sys.argv[1:] = argv  # upstream's parser reads it, and says in its usage how it was called
    try:
        config = find_config(task, argv)
        path = config_path(config)
        sys.argv[1:] = [path if word == config else word for word in argv]  # upstream's tools take files alone
        tool = load_tool(scope_of(read_config(path)), task)
        check(task, settled_config(tool))
    except (PreflightError, MissingRequirementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    launch_without_gpu()  # also for a config without CE, which asks for nothing of ce_mm
    tool.main()
    return 0


def find_config(task: Task, argv: Sequence[str]) -> str:
    """The config of a command line, as upstream's parser sees it.

    Where that parser refuses the command line, or is asked for help, it is the first argument that ends like a config,
    whose library's parser is to say so; without one, the parser at hand does.

    Raises:
        PreflightError: ``--cfg-options`` has taken something that sets nothing, the config behind it for example.
        MissingRequirementError: neither library is installed.
    """
    try:
        tool = load_tool("mmpretrain", task)  # whose parser knows all options that mmdet's does
    except MissingRequirementError:
        tool = load_tool("mmdet", task)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            return tool.parse_args().config
    except SystemExit:
        likely = next((word for word in argv if word.endswith(CONFIG_SUFFIXES) and not word.startswith("-")), None)
        return likely or tool.parse_args().config
    except ValueError:
        raise PreflightError(
            "--cfg-options takes all words up to the next option, and one of them is no KEY=VALUE; put the config first"
        ) from None


def load_tool(scope: str, task: Task) -> ModuleType:
    """Import tools/train.py or tools/test.py as mmdet and mmpretrain install it.

    Raises:
        PreflightError, MissingRequirementError: the package was installed without its tools, or is not.
    """
    require(scope)
    path = Path(sys.modules[scope].__file__).parent / ".mim" / "tools" / f"{task}.py"
    if not path.is_file():
        raise PreflightError(f"{scope} was installed without its tools ({path} is missing); reinstall it with pip")
    spec = importlib.util.spec_from_file_location(f"{scope}_{task}", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def settled_config(tool: ModuleType) -> Config:
    """The config as a tool's ``main()`` gives it to its runner: with all that it makes of the command line.

    ``main()`` runs up to where its runner would start. It has written nothing until then.

    Raises:
        PreflightError: it fails before, for a setting that an option reaches for and the config does not have, say.
    """
    def build(cfg: Config) -> SimpleNamespace:
        def start() -> NoReturn:
            raise _StartedError(cfg)

        return SimpleNamespace(train=start, test=start, test_evaluator=SimpleNamespace(metrics=[]))

    runner = SimpleNamespace(from_cfg=build, build=build)
    try:
        with patch.multiple(tool, Runner=runner, RUNNERS=runner):
            tool.main()
    except _StartedError as started:
        return started.args[0]
    except Exception as error:  # whatever the tool makes of options and config
        raise PreflightError(f"this config with these options: {one_line(error)}") from error


class _StartedError(Exception):
    """A runner would start now, with this config."""
