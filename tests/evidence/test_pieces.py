"""Every command that the docs name is there, and nothing of the package or of the users' tools imports the evidence."""
import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_piece_that_is_named_can_be_started():
    pages = [ROOT / "README.md", ROOT / "tools/evidence/README.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"python -m (tools\.[\w.]+)", page.read_text("utf-8"))}
    assert len(named) >= 14
    for name in named:
        spec = importlib.util.find_spec(name)
        if spec.submodule_search_locations:  # a package starts by its __main__
            spec = importlib.util.find_spec(f"{name}.__main__")
        assert '__name__ == "__main__"' in Path(spec.origin).read_text("utf-8"), name


def test_nothing_outside_imports_the_evidence():
    files = [*(ROOT / "ce_mm").rglob("*.py"), *(ROOT / "tools").glob("*.*"), *(ROOT / "tools/analysis").glob("*.py")]
    assert not [file for file in files if "evidence" in file.read_text("utf-8")]
