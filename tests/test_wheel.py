"""What goes into the wheel: the package, and under .mim what mim looks for; none of the project's own evidence."""
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ce_mm.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a build: ``lib``, of which a wheel is made, and what its command is."""
    folder = tmp_path_factory.mktemp("build")
    places = ["egg_info", "--egg-base", folder, "build", "--build-base", folder, "--build-lib", folder / "lib"]
    run = subprocess.run([sys.executable, "setup.py", *places], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def files(built):
    return {path.relative_to(built / "lib").as_posix() for path in (built / "lib").rglob("*.*")}


def test_it_has_the_package_and_what_mim_looks_for(files):
    assert {"ce_mm/version.py", "ce_mm/.mim/tools/train.py", "ce_mm/.mim/model-index.yml"} <= files
    assert "ce_mm/.mim/configs/coco/mask-rcnn_ce-r50_fpn_2x_coco.py" in files


def test_it_has_no_evidence_no_tests_and_no_caches(files):
    unwanted = {"evidence", "benchmark", "reliability", "tests", "__pycache__"}
    assert not [path for path in files if unwanted.intersection(path.split("/"))]


def test_it_has_the_command_and_all_that_it_starts(built, files):
    command = (built / "ce_mm.egg-info/entry_points.txt").read_text()
    assert command == "[console_scripts]\nce_mm = ce_mm.__main__:main\n"
    names = [name for group in COMMANDS.values() for name in group]
    assert {f"ce_mm/commands/{name}.py" for name in names} <= files


def test_an_editable_one_leaves_mim_its_index_beside_the_packages_and_comes_before_that_folder(tmp_path):
    places = ["egg_info", "--egg-base", tmp_path, "editable_wheel", "--dist-dir", tmp_path]
    run = subprocess.run([sys.executable, "setup.py", *places], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        metafiles = {f"ce_mm/.mim/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("configs/*/metafile.yml")}
        assert {name for name in archive.namelist() if ".mim" in name} == {"ce_mm/.mim/model-index.yml", *metafiles}
        # On the path this folder's package counts, and not one that is made of a folder alone.
        (on_path,) = (name for name in archive.namelist() if name.endswith(".pth"))
        assert archive.read(on_path).decode().strip() == str(ROOT)


def test_its_configs_are_known_by_name(built, tmp_path):
    pytest.importorskip("mmdet", exc_type=ImportError)
    name = "coco/mask-rcnn_ce-r50_fpn_2x_coco.py"
    code = f"from ce_mm.launching.config import read_config; print(read_config('ce_mm::{name}').filename)"
    environment = {**os.environ, "PYTHONPATH": str(built / "lib")}
    command = [sys.executable, "-W", "ignore", "-c", code]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == str(built / "lib/ce_mm/.mim/configs" / name)
