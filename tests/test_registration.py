import subprocess
import sys

import pytest

BUILD = "import ce_mm; from mmengine.registry import {registry}; {registry}.build(dict(type={name!r}))"


def run_without(library, code):
    """What Python prints for ``code`` where ``library`` is not installed."""
    blocked = f"import sys; sys.modules[{library!r}] = None; {code}"
    return subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("library", "code"),
    [
        ("mmengine", "import ce_mm.layers"),
        ("mmcv", "import ce_mm.layers"),
        ("mmcv", BUILD.format(registry="MODELS", name="CE")),
        ("mmpretrain", "import ce_mm.backbones"),
        ("mmpretrain", BUILD.format(registry="MODELS", name="CEResNet")),
        ("mmcv", BUILD.format(registry="HOOKS", name="NonFiniteHook")),
        ("mmcv", BUILD.format(registry="TRANSFORMS", name="LoadImage")),
    ],
)
def test_what_a_missing_library_takes_away_says_what_to_install(library, code):
    result = run_without(library, code)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert f"ce_mm needs {library}" in last
    assert 'pip install "ce_mm[onedl]"' in last


@pytest.mark.parametrize("library", ["mmengine", "mmcv", "mmdet", "mmpretrain"])
def test_ops_and_the_version_need_none_of_the_libraries(library):
    result = run_without(library, "import ce_mm.ops; print(ce_mm.__version__)")
    assert result.returncode == 0, result.stderr


def test_layers_need_no_detector_and_no_classifier():
    code = "sys.modules['mmpretrain'] = None; import ce_mm; from mmengine.registry import MODELS; "
    code += "print(MODELS.build(dict(type='CE', num_features=8)))"
    result = run_without("mmdet", code)
    assert result.returncode == 0, result.stderr
