"""Thin fronts of upstream's own tools: mmdet's or mmpretrain's train.py and test.py, whichever a config asks for.

The options are upstream's, parsed by upstream's parser, and upstream's ``main()`` does the work. In front of it stand
``import ce_mm``, as they import mmcv's operators before they read a config, and the checks of `preflight`.
"""
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ce_mm.compat.requirements import MissingRequirementError, require
from ce_mm.launching.config import PreflightError, read_config
from ce_mm.launching.preflight import Task, check

SCOPES = ("mmdet", "mmpretrain")
CONFIG_SUFFIXES = (".py", ".json", ".yaml", ".yml")


def launch(task: Task, argv: Sequence[str]) -> int:
    """Run upstream's tool on a command line.

    Args:
        task: which tool.
        argv: the arguments without the program's name. The first that ends like a config file and holds no ``=`` is
            the config, and decides whose options the others are.

    Returns:
        0, or 2 after one line on stderr if the run could not start. Upstream's parser exits by itself.
    """
    config = next((word for word in argv if word.endswith(CONFIG_SUFFIXES) and "=" not in word), None)
    usage = (
        f"usage: python tools/{task}.py CONFIG [...]\n"
        f"The rest is as for mmdet's or mmpretrain's own tools/{task}.py, whichever is the default_scope of CONFIG;\n"
        f"python tools/{task}.py CONFIG --help lists it."
    )
    if config is None and {"-h", "--help"} & set(argv):
        print(usage)
        return 0
    sys.argv = [f"{task}.py", *argv]  # upstream's parser reads it
    try:
        if config is None:
            raise PreflightError(f"no config file is given (*{', *'.join(CONFIG_SUFFIXES)})\n{usage}")
        cfg = read_config(config)
        tool = load_tool(cfg.get("default_scope"), task)
        args = tool.parse_args()
        if args.config != config:
            raise PreflightError(f"{config} was taken for the config, but it is {args.config}; put the config first")
        check(task, cfg, args)
    except (PreflightError, MissingRequirementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tool.main()
    return 0


def load_tool(scope: str | None, task: Task) -> ModuleType:
    """Import tools/train.py or tools/test.py as mmdet and mmpretrain install it.

    Raises:
        PreflightError: ``scope`` is neither of these two, or the installed package has no such file.
        MissingRequirementError: the package is not installed.
    """
    if scope not in SCOPES:
        raise PreflightError(f"the config's default_scope is {scope!r}; expected {' or '.join(map(repr, SCOPES))}")
    require(scope)
    path = Path(sys.modules[scope].__file__).parent / ".mim" / "tools" / f"{task}.py"
    if not path.is_file():
        raise PreflightError(f"{scope} was installed without its tools ({path} is missing); reinstall it with pip")
    spec = importlib.util.spec_from_file_location(f"{scope}_{task}", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool
