"""The command from end to end, on 256 pictures, where torch is alone."""
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
LIBRARIES = ("mmengine", "mmcv", "mmdet", "mmpretrain", "torchvision", "matplotlib", "scipy")


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    files = []
    for _ in range(266):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "JPEG")
        files.append(file.getvalue())
    path = tmp_path / "pictures.npz"
    np.savez(
        path, jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=np.cumsum([0, *map(len, files)]),
        labels=np.arange(266) % 10, split=(np.arange(266) >= 256).astype(int),
    )  # fmt: skip
    return path


def run(tmp_path, *arguments):
    blocked = tmp_path / "blocked"
    blocked.mkdir(exist_ok=True)
    (blocked / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({LIBRARIES})\n")
    return subprocess.run(
        [sys.executable, "-m", "tools.evidence.cifar10", *arguments],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(blocked)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_with_torch_alone_it_trains_stops_goes_on_and_writes_a_table(tmp_path, data):
    command = (data, "--out", tmp_path / "out", "--variants", "BN+ReLU", "BN+CE+ReLU", "SN+ReLU", "--seeds", "1")
    stopped = run(tmp_path, *command, "--minutes", "0")
    assert stopped.returncode == 0, stopped.stderr
    assert "0 of 3 trainings are finished; there are no results yet" in stopped.stdout
    assert not (tmp_path / "out" / "results.md").exists()
    finished = run(tmp_path, *command, "--workers", "2")
    assert finished.returncode == 0, finished.stderr
    assert "no pictures" in finished.stdout
    table = (tmp_path / "out" / "results.md").read_text()
    assert all(f"| {name} | 1 |" in table for name in ("BN+ReLU", "BN+CE+ReLU", "SN+ReLU"))


def test_what_ends_it_ends_its_trainings_too(tmp_path, data):
    command = [sys.executable, "-m", "tools.evidence.cifar10", data, "--out", tmp_path / "out", "--recipe", "paper"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        text = ""
        while "epoch 1" not in text:  # the worker is at work
            text += process.stderr.read(1)
        process.terminate()
        rest = process.stderr.read()  # to its end: nobody has it open any more
    assert process.returncode == 130
    assert "Interrupted. Run the same command again to go on.\n" in rest


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--variants", "BN+XE"), "'BN+XE' is no variant"),
        (("--seeds", "0"), "at least one seed, got 0"),
        (("--workers", "0"), "at least one worker, got 0"),
    ],
)
def test_a_wrong_argument_is_one_line(tmp_path, data, arguments, text):
    result = run(tmp_path, data, "--out", tmp_path / "out", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert text in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    result = run(tmp_path, tmp_path / "absent.npz", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "absent.npz: there is no such file" in result.stderr
