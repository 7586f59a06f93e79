"""``ce_mm run``: tools of the libraries, found by name, run as programs, with what mmcv lacks here."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ce_mm.commands.run import find_tool, main
from ce_mm.datasets.shapes import make_shapes

ROOT = Path(__file__).resolve().parents[2]
SHAPES = "ce_mm::shapes/mask-rcnn_ce-r18_fpn_shapes.py"
CLASSIFIER = ROOT / "configs/shapes/ce-resnet18_shapes.py"


@pytest.fixture
def library(tmp_path, monkeypatch):
    """mmpretrain, with two tools."""
    pytest.importorskip("mmpretrain", exc_type=ImportError)
    folder = tmp_path / ".mim/tools/analysis"
    folder.mkdir(parents=True)
    (folder / "beside.py").write_text("name = 'beside it'\n")
    (folder / "say.py").write_text("import beside, sys\nprint(__name__, beside.name, sys.argv)\nsys.exit(3)\n")
    monkeypatch.setattr(sys.modules["mmpretrain"], "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return folder


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["ce_mm run", *map(str, arguments)])
    return main()


def test_a_tool_is_the_program_that_it_would_be_alone(library, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "mmpretrain", "analysis/say.py", "--help", "-x", 1)
    assert end.value.code == 3
    assert capsys.readouterr().out == f"__main__ beside it {[str(library / 'say.py'), '--help', '-x', '1']}\n"


def test_a_config_s_name_becomes_its_file_and_one_that_there_is_not_is_one_line(library, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "mmpretrain", "analysis/say.py", "ce_mm::shapes/ce-resnet18_shapes.py", "a=b::c")
    assert capsys.readouterr().out.endswith(f"[{str(library / 'say.py')!r}, {str(CLASSIFIER)!r}, 'a=b::c']\n")
    assert run(monkeypatch, "mmpretrain", "analysis/say.py", "ce_mm::none.py") == 2
    assert capsys.readouterr().err.startswith("error: config ce_mm::none.py: there is no such config")


def test_a_wrong_name_is_answered_with_all_that_there_are(library, monkeypatch, capsys):
    assert run(monkeypatch, "mmpretrain", "say.py") == 2
    said = "error: mmpretrain has no tool say.py; there are:\n  analysis/beside.py\n  analysis/say.py\n"
    assert capsys.readouterr() == ("", said)


def test_a_library_without_its_tools_is_named(library, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["mmpretrain"], "__file__", str(tmp_path / "none/__init__.py"))
    with pytest.raises(ValueError, match=r"there are: none: .* is missing; reinstall mmpretrain with pip"):
        find_tool("mmpretrain", "train.py")


def test_mmdet_s_browser_draws_the_shapes(tmp_path):
    pytest.importorskip("mmdet", exc_type=ImportError)
    make_shapes(tmp_path / "data/shapes", num_train=2, num_val=1, num_crops=6)
    tool = ["run", "mmdet", "analysis_tools/browse_dataset.py", SHAPES, "--output-dir", "drawn", "--not-show"]
    done = subprocess.run(
        [sys.executable, "-m", "ce_mm", *tool], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert [path.name for path in drawn] == ["000001.png", "000002.png"]
    with Image.open(drawn[0]) as picture:
        assert picture.convert("RGB").tobytes() != Image.open(tmp_path / "data/shapes/train/000001.png").tobytes()
