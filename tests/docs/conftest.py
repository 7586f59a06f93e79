"""A copy of the repository in which the pages' commands run, and which they have to leave clean."""
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from pages import ROOT

LEFT_OUT = (".git", ".venv*", "data", "work_dirs", "build", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")


def git(folder: Path, *words: str) -> str:
    """What git prints of a folder."""
    name = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    return subprocess.run(["git", *name, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout of its own for a module. After the module's tests there is nothing in it that git does not ignore."""
    if not shutil.which("git"):
        pytest.skip("there is no git on this machine")
    folder = tmp_path_factory.mktemp("checkouts") / "ce_mm"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=all")
    yield folder
    assert git(folder, "status", "--porcelain") == ""


@pytest.fixture
def as_in_a_new_process(monkeypatch):
    """A command may run in this process: what mmengine remembers of runs, and sys.argv, are this test's alone."""
    for kind in (DefaultScope, MMLogger, MessageHub, Visualizer):
        monkeypatch.setattr(kind, "_instance_dict", OrderedDict())
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("LOCAL_RANK", "0")  # which upstream's parsers set
