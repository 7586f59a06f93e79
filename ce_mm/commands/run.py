"""Run any tool that mmdet or mmpretrain installs, with ce_mm imported first.

Without it, those that import mmcv's compiled operators fail where there are none.

ce_mm run mmdet analysis_tools/browse_dataset.py CONFIG --output-dir pictures --not-show

TOOL is a path below the library's tools; a wrong one is answered with all that there are. What follows is the tool's
own, --help too; a config may be named by its package there, too: ce_mm::coco/..., mmdet::...
"""
import argparse
import re
import runpy
import sys
from pathlib import Path

from ce_mm.compat.requirements import MissingRequirementError, require

#: ``package::path``, of a config that the package has installed.
CONFIG_NAME = re.compile(r"(ce_mm|mmdet|mmpretrain)::.+")


def main() -> int:
    """Parse the arguments up to the tool's own, and run it; one line and status 2 where it cannot be found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=("mmdet", "mmpretrain"))
    parser.add_argument("tool", metavar="TOOL", help="for example analysis_tools/browse_dataset.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the tool's own")
    args = parser.parse_args()
    try:
        path = find_tool(args.library, args.tool)
        words = [_file_of(word) for word in args.arguments]
    except (ValueError, MissingRequirementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sys.argv = [str(path), *words]
    sys.path.insert(0, str(path.parent))  # as Python does for a script: some import what lies beside them
    runpy.run_path(str(path), run_name="__main__")
    return 0


def _file_of(word: str) -> str:
    """A word of the command line; of a config's name the file, as the libraries' tools take files alone."""
    if not CONFIG_NAME.fullmatch(word):
        return word
    from ce_mm.launching.config import config_path

    return config_path(word)


def find_tool(library: str, name: str) -> Path:
    """The file of a tool, by its path below the tools of a library.

    Raises:
        ValueError: there is none of that name; all that there are.
        MissingRequirementError: the library is not installed.
    """
    require(library)
    folder = Path(sys.modules[library].__file__).parent / ".mim" / "tools"
    tools = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.py"))}
    if name not in tools:
        there = "".join(f"\n  {tool}" for tool in tools) or f" none: {folder} is missing; reinstall {library} with pip"
        raise ValueError(f"{library} has no tool {name}; there are:{there}")
    return tools[name]
