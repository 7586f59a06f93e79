"""The page on the design names the files and functions that there are."""
import inspect
import re
from pathlib import Path

import pytest
import torch
from calls import Calls

from ce_mm.layers import CENorm
from ce_mm.ops import choose

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "design.md").read_text(encoding="utf-8")


def named_in_tree(start, end):
    """The Python files that the tree of the house names between two of its lines."""
    part = PAGE[PAGE.index(f"      {start} ") : PAGE.index(f"      {end} ")]
    return sorted(re.findall(r"\b\w+\.py\b", part.replace("__init__.py", "")))


def modules(folder):
    return sorted(path.name for path in (ROOT / "ce_mm" / folder).rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("folder, end", [("ops", "layers/"), ("layers", "registration.py")])
def test_the_tree_has_every_file(folder, end):
    assert named_in_tree(f"{folder}/", end) == modules(folder)


@pytest.fixture
def plain(monkeypatch):
    """In PyTorch calls, as the walk goes."""
    monkeypatch.setenv("CE_MM_BACKEND", "plain")
    choose.cache_clear()
    yield
    choose.cache_clear()


def test_the_walk_is_what_a_forward_does_in_this_order(plain):
    walked = [(file, name) for file, name in re.findall(r"^\|[^|]*\| `(\S+\.py)` `(\S+)` \|", PAGE, re.MULTILINE)]
    ce, x = CENorm(32), torch.randn(4, 32, 8, 8)
    called = list(Calls(ce, x).functions)
    assert len(walked) == 17
    assert [each for each in called if each in walked] == walked


def test_the_lines_of_the_walk_are_those_of_the_layer():
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    source = [line.strip() for line in inspect.getsource(CENorm.forward).splitlines()]
    lines = [line.strip() for line in block.splitlines()]
    start = source.index(lines[0])
    assert source[start : start + len(lines)] == lines


def test_the_names_of_the_key_are_in_the_code():
    table = PAGE[PAGE.index("## 3. ") : PAGE.index("## 4. ")]
    names = {word for code in re.findall(r"`([^`]+)`", table) for word in re.findall(r"[A-Za-z]\w+", code)}
    files = [*(ROOT / "ce_mm/ops").glob("*.py"), ROOT / "ce_mm/layers/ce_norm.py"]
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    assert {"whitening", "inv_std_scale", "ratio"} <= names
    assert names - {"py"} <= set(re.findall(r"\w+", code))
