"""What runs on a GPU runs here in a rehearsal; what is done is skipped, and what runs too long is ended."""
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.evidence.gpu import __main__ as gpu
from tools.evidence.gpu import checks
from tools.evidence.gpu.slices import SEEDS, SLICES, Slice

ROOT = Path(__file__).resolve().parents[3]


def start(*arguments):
    return subprocess.run(
        ["bash", "tools/evidence/gpu.sh", *arguments], cwd=ROOT, env=os.environ | dict(PYTHON=sys.executable),
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_rehearsed_slice_leaves_a_log_and_a_table_and_is_skipped_when_done(tmp_path):
    pytest.importorskip("triton")
    first = start(tmp_path / "out", "tests", "--rehearse")
    assert first.returncode == 0, first.stderr
    assert "1 passed" in (tmp_path / "out/tests.log").read_text()
    (kept,) = json.loads((tmp_path / "out/slices.json").read_text()).values()
    assert kept["done"] and {"device", "torch", "triton", "python"} <= set(kept["machine"])
    assert "| tests | `python -m pytest" in (tmp_path / "out/slices.md").read_text()
    assert "tests: done" in start(tmp_path / "out", "tests", "--rehearse").stderr


def run(tmp_path, monkeypatch, code, **arguments):
    """Whether a slice of one command ends well, and what is kept of it."""
    one = Slice("", lambda out, rehearses: [[sys.executable, "-c", code]], **arguments)
    monkeypatch.setitem(gpu.SLICES, "one", one)
    return gpu.run("one", tmp_path, True), gpu.read(tmp_path)["one"]


def test_a_command_that_fails_is_not_done(tmp_path, monkeypatch):
    well, kept = run(tmp_path, monkeypatch, "raise SystemExit(3)")
    assert not well and not kept["done"] and kept["commands"][0]["status"] == 3


def test_a_slice_that_ends_well_may_have_more_to_do(tmp_path, monkeypatch):
    well, kept = run(tmp_path, monkeypatch, "pass", is_done=lambda out: False)
    assert well and not kept["done"]


def test_what_runs_past_the_time_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "SECONDS", 0.2)
    start = time.monotonic()
    well, kept = run(tmp_path, monkeypatch, "import time; time.sleep(60)")
    assert not well and kept["commands"][0]["status"] == gpu.TIMED_OUT
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("name", SLICES)
@pytest.mark.parametrize("rehearses", [True, False])
def test_every_command_starts_a_piece_that_is_there(tmp_path, name, rehearses):
    for command in SLICES[name].commands(tmp_path, rehearses):
        module = command[list(command).index("-m") + 1]
        assert module == "pip" or importlib.util.find_spec(module) is not None


def test_cifar10_is_done_with_all_seeds(tmp_path):
    for seed in range(SEEDS):
        assert not SLICES["cifar10-ce"].is_done(tmp_path)
        folder = tmp_path / f"cifar10-ce/bn+ce+relu-seed{seed}"
        folder.mkdir(parents=True)
        (folder / "measured.json").touch()
    assert SLICES["cifar10-ce"].is_done(tmp_path)


def test_bad_input_is_one_line_and_status_2(tmp_path):
    result = start(tmp_path, "test", "--rehearse")
    assert result.returncode == 2
    assert result.stderr.startswith("error: 'test' is no slice; expected some of tests, checks, memcheck")


def test_a_check_that_raises_fails_and_the_others_are_still_made(tmp_path, monkeypatch):
    def raising():
        raise RuntimeError("no such kernel")

    exact = checks.Found(0.0, 0.0)
    monkeypatch.setattr(checks, "checks", lambda quick: {"one": raising, "other": lambda: exact})
    assert checks.main(["--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "checks.json").read_text())["checks"]
    assert (found["one"]["passed"], found["other"]["passed"]) == (False, True)
    assert "RuntimeError: no such kernel" in (tmp_path / "checks.md").read_text()


@pytest.mark.parametrize("name", ["large_map", "graph", "scaler"])
def test_a_check_passes_in_a_rehearsal(name):
    found = getattr(checks, name)(True, *(["contiguous"] if name == "large_map" else []))
    assert found.error <= found.limit


def test_a_wrong_result_is_found():
    x = checks.a_map(2, 32, 3, 5)
    assert checks.worst([x], [x]) == 0
    assert checks.worst([x * 1.01], [x]) > 1e-3
    assert math.isinf(checks.worst([x * math.nan], [x]))
