"""``ce_mm warmup``: what it prints, and how it ends."""
import subprocess
import sys
from pathlib import Path

import pytest

from ce_mm.commands.warmup import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ce_mm warmup"])


def test_it_says_how_long_it_took_and_where_the_passes_are_kept(capsys, monkeypatch):
    monkeypatch.setattr("ce_mm.ops.backends.numba_ready.warm_up", lambda: Path("/a/folder"))
    assert main() == 0
    assert capsys.readouterr().out == "The CPU's passes are ready after 0.0 s, and are kept in /a/folder\n"


def test_a_failure_is_one_line(capsys, monkeypatch):
    def fail():
        raise RuntimeError("there is no room")

    monkeypatch.setattr("ce_mm.ops.backends.numba_ready.warm_up", fail)
    assert main() == 1
    assert capsys.readouterr() == ("", "error: there is no room\n")


def test_a_process_of_its_own_imports_none_of_the_libraries():
    pytest.importorskip("numba")
    code = "import runpy, sys; sys.argv = ['ce_mm', 'warmup']; runpy.run_module('ce_mm', run_name='__main__')"
    command = f"import atexit, sys; atexit.register(lambda: print('mmengine' in sys.modules)); {code}"
    run = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first.startswith("The CPU's passes are ready") and second == "False"
