"""The comparison with the libraries' own tests tells what ce_mm breaks from what it does not."""
import subprocess
import sys
from pathlib import Path

TOOL = [sys.executable, "-m", "tools.evidence.upstream_suites"]
ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import os
import sys

import pytest

import mmengine

def test_of_both(): pass
def test_of_neither(): assert False
def test_broken_by_ce_mm(): assert "ce_mm" not in sys.modules
def test_mended_by_ce_mm(): assert "ce_mm" in sys.modules
def test_that_kills_its_process(): os.abort()
def test_of_the_installed_library(): assert not os.path.realpath(mmengine.__file__).startswith(os.getcwd())
@pytest.mark.skip
def test_of_nobody(): pass
"""


def test_a_row_counts_both_runs_and_names_what_ce_mm_breaks(tmp_path):
    (tmp_path / "mmengine/tests/test_infer").mkdir(parents=True)
    (tmp_path / "mmengine/tests/test_infer/test_library.py").write_text(TESTS)
    run = subprocess.run([*TOOL, tmp_path, "infer"], cwd=ROOT, capture_output=True, text=True)
    row = run.stdout.splitlines()[-1]
    assert row == "| mmengine | infer | 6 | 3 | 3 | 1 | tests/test_infer/test_library.py::test_broken_by_ce_mm |"
    assert run.returncode == 1


def test_an_unknown_suite_is_refused(tmp_path):
    run = subprocess.run([*TOOL, tmp_path, "hook"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert "no suite hook; there are hooks, " in run.stderr
