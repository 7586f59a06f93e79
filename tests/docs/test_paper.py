"""The page on the paper has a row for each item, and every name in it is one of the repository's."""
import importlib.util
import inspect
import re
from ast import literal_eval
from pathlib import Path

import pytest

from ce_mm.backbones import CEResNet
from ce_mm.layers import CENorm

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "paper.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\|(.*)\|$", PAGE, re.MULTILINE)
ROWS = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in LINES]
ITEMS = [row[0] for row in ROWS if row[0] != "item" and not row[0].startswith("-")]
NAMES = sorted(set(re.findall(r"`([^`]+)`", PAGE)))
ARGUMENTS = {**inspect.signature(CEResNet).parameters, **inspect.signature(CENorm).parameters}


def numbers(kind):
    """Those of the items of a kind, such as 9 and 11 of "Eqs. 9, 11: ...", with all between where one says "to"."""
    found = set()
    for item in ITEMS:
        for listed in re.findall(rf"\b{kind}s?\.? (\d+(?:(?:\([a-z]\))?(?:, | and | to )\d+)*)", item):
            named = [int(number) for number in re.findall(r"\d+", listed)]
            found.update(range(named[0], named[-1] + 1) if " to " in listed else named)
    return found


def exists(name):
    """Whether a name is an argument, a file, a config, or what Python finds in a module."""
    if re.fullmatch(r"\w+(=\w+)?", name):
        return name.split("=")[0] in ARGUMENTS
    if "/" in name:
        return (ROOT / name).exists() or (ROOT / "configs" / f"{name}.py").is_file()
    assert name.startswith(("ce_mm.", "tools.evidence."))
    module, _, member = name.rpartition(".")
    return hasattr(importlib.import_module(module), member) or importlib.util.find_spec(name) is not None


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_repository_s(name):
    assert exists(name)


@pytest.mark.parametrize(
    ("kind", "all_of_them"), [("Eq", range(1, 33)), ("Table", range(1, 8)), ("Figure", (1, 4, 6, 7))], ids=str
)
def test_every_item_of_the_paper_has_a_row(kind, all_of_them):
    assert numbers(kind) == set(all_of_them)


def test_every_row_says_what_where_and_how():
    assert len(ITEMS) > 50
    assert all(len(row) == 3 and all(row) for row in ROWS)


def test_a_default_is_one():
    said = re.findall(r"`(\w+)=(\w+)`, the default", PAGE)
    assert len(said) == 3
    assert all(ARGUMENTS[name].default == literal_eval(value) for name, value in said)


def test_every_config_of_the_paper_s_networks_on_imagenet_is_named():
    configs = {f"imagenet/{path.stem}" for path in (ROOT / "configs/imagenet").glob("*.py")}
    by_depth = {name for name in configs if re.search(r"/(ce-)?resnet(34|101|152)_", name)}
    assert configs - by_depth <= set(NAMES)
