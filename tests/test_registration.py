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
def test_layers_and_the_version_need_none_of_the_libraries(library):
    result = run_without(library, "import ce_mm.layers; print(ce_mm.__version__)")
    assert result.returncode == 0, result.stderr


def test_mmengine_alone_is_enough_to_build_a_layer_by_its_name():
    code = "sys.modules['mmcv'] = None; import ce_mm; from mmengine.registry import MODELS; "
    code += "print(MODELS.build(dict(type='CE', num_features=8)))"
    result = run_without("mmdet", code)
    assert result.returncode == 0, result.stderr


def test_names_are_there_whichever_is_imported_first():
    for code in ("import ce_mm; import mmengine.registry", "import mmengine.registry; import ce_mm"):
        code += "; from mmengine.registry import MODELS, HOOKS, TRANSFORMS"
        code += "; assert all(map(MODELS.get, ('CE', 'SN', 'CEResNet'))) and HOOKS.get('NonFiniteHook')"
        subprocess.run([sys.executable, "-c", code], check=True)
