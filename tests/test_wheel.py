"""What goes into the wheel: the package, and under .mim what mim looks for; none of the project's own evidence."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The files that a wheel is made of, from the folder of the build."""
    folder = tmp_path_factory.mktemp("build")
    places = ["egg_info", "--egg-base", folder, "build", "--build-base", folder, "--build-lib", folder / "lib"]
    run = subprocess.run([sys.executable, "setup.py", *places], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return {path.relative_to(folder / "lib").as_posix() for path in (folder / "lib").rglob("*.*")}


def test_it_has_the_package_and_what_mim_looks_for(built):
    assert {"ce_mm/version.py", "ce_mm/.mim/tools/train.py", "ce_mm/.mim/model-index.yml"} <= built
    assert "ce_mm/.mim/configs/coco/mask-rcnn_ce-r50_fpn_2x_coco.py" in built


def test_it_has_no_evidence_no_tests_and_no_caches(built):
    unwanted = {"evidence", "benchmark", "reliability", "tests", "__pycache__"}
    assert not [path for path in built if unwanted.intersection(path.split("/"))]
