"""The project's pages as tests read them: blocks of code, commands, headings, links; and commands to their parsers."""
import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
#: All pages that users read.
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "configs/*/README.md", "tools/evidence/README.md")
    for page in ROOT.glob(pattern)
)
CONFIG = "ce_mm::shapes/ce-resnet18_shapes.py"
"""Stands for the word CONFIG in a command."""


def text_of(page: str) -> str:
    """The text of a page, named from the repository's root."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str = "python") -> Iterator[tuple[int, str]]:
    """The blocks of code of a language, each with the number of lines above it."""
    text = text_of(page)
    for block in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, block.start(1)), block[1]


def run_block(page: str, above: int, code: str, names: dict) -> None:
    """Execute a block; an error names the line of the page."""
    exec(compile("\n" * above + code, str(ROOT / page), "exec"), names)


def commands(page: str) -> list[list[str]]:
    """The command lines of a page's bash blocks, in words, without comments."""
    lines = [line for _, code in blocks(page, "bash") for line in code.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def of_the_package(words: list[str]) -> list[str] | None:
    """What follows ``ce_mm`` in a command line, also where torchrun starts it; None if it is no command of ours."""
    if words[0] == "ce_mm":
        return words[1:]
    return words[words.index("ce_mm") + 1 :] if words[0] == "torchrun" else None


class ParsedError(Exception):
    """A command line has been parsed; the arguments."""


def parsed(words: list[str]) -> argparse.Namespace:
    """The arguments of ``ce_mm WORDS`` as the command's own parser reads them, without doing what they ask for.

    Those of train and test are read by the parser of the library that their config belongs to.
    """
    command, *rest = (CONFIG if word == "CONFIG" else word for word in words)
    parse = argparse.ArgumentParser.parse_args

    def stop(*args, **kwargs):
        raise ParsedError(parse(*args, **kwargs))

    with patch.object(sys, "argv", [f"ce_mm {command}", *rest]):
        if command in ("train", "test"):
            from ce_mm.launching.config import read_config, scope_of
            from ce_mm.launching.front import find_config, load_tool

            return load_tool(scope_of(read_config(find_config(command, rest))), command).parse_args()
        with patch.object(argparse.ArgumentParser, "parse_args", stop):
            try:
                importlib.import_module(f"ce_mm.commands.{command}").main()
            except ParsedError as done:
                return done.args[0]
    raise AssertionError(f"{command} does not parse its command line")


def anchors(page: str) -> set[str]:
    """Those that GitHub makes of the headings."""
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: str) -> list[tuple[str, str]]:
    """What a page links to in the repository: the path from the root, and the anchor or ''."""
    found = []
    for file, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)]*)\)", text_of(page)):
        target = (ROOT / page).parent / file if file else ROOT / page
        found.append((target.resolve().relative_to(ROOT).as_posix(), heading))
    return found
