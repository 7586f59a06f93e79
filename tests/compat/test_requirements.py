"""A missing, broken or ill-matched OpenMMLab package gives one error that names it and says what to install."""
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ce_mm.compat.requirements import SUPPORTED, MissingRequirementError, require

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Write a package of the given name and source that shadows the installed one."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, source: str) -> None:
        for module in [m for m in sys.modules if m.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(textwrap.dedent(source))

    return write


@pytest.mark.parametrize("name, version", [
    ("mmengine", "0.10.0"), ("mmengine", "0.11.2"), ("mmcv", "2.0.0rc4"), ("mmcv", "2.3.6"),
    ("mmdet", "3.3.0"), ("mmdet", "3.5.1"), ("mmpretrain", "1.2.0"), ("mmpretrain", "1.3.6"),
])
def test_a_supported_version_passes(fake, name, version):
    fake(name, f"__version__ = '{version}'")
    require(name)


@pytest.mark.parametrize("name, version", [
    ("mmengine", "0.9.1"), ("mmengine", "1.0.0"), ("mmcv", "1.7.2"), ("mmcv", "3.0.0"),
    ("mmdet", "2.28.0"), ("mmdet", "3.2.0"), ("mmdet", "4.0.0"), ("mmpretrain", "1.1.1"), ("mmpretrain", "2.0.0"),
])
def test_another_version_is_named_beside_the_range_and_the_way_out(fake, name, version):
    fake(name, f"__version__ = '{version}'")
    with pytest.raises(MissingRequirementError) as caught:
        require(name)
    message = str(caught.value)
    assert f"{name}{SUPPORTED[name][0]}" in message and version in message
    assert 'pip install "ce_mm[onedl]"' in message and "ce_mm[openmmlab]" in message and "setuptools<81" in message


def test_a_missing_package_is_called_not_installed(monkeypatch):
    monkeypatch.setitem(SUPPORTED, "mm_absent", (">=1,<2", (1, 0), (2, 0)))
    with pytest.raises(MissingRequirementError, match=r"mm_absent>=1,<2, but it is not installed"):
        require("mm_absent")


@pytest.mark.parametrize("source, reason", [
    ("import pkg_resources_absent", "No module named 'pkg_resources_absent'"),
    ("assert False, 'MMCV==9 is used but incompatible'", "MMCV==9 is used but incompatible"),
    ("raise OSError('libtorch.so: undefined symbol')", "undefined symbol"),
])
def test_an_import_that_fails_is_told_with_its_reason(fake, source, reason):
    fake("mmpretrain", source)
    with pytest.raises(MissingRequirementError) as caught:
        require("mmpretrain")
    assert "mmpretrain>=1.2,<2" in str(caught.value) and reason in str(caught.value)


def test_a_folder_of_the_same_name_is_not_taken_for_the_package(fake, tmp_path):
    fake("mmdet", "")
    with pytest.raises(MissingRequirementError, match="has no __version__") as caught:
        require("mmdet")
    assert str(tmp_path) in str(caught.value)


def test_the_first_unmet_requirement_is_the_one_reported(fake):
    fake("mmcv", "__version__ = '1.7.2'")
    fake("mmdet", "__version__ = '2.28.0'")
    with pytest.raises(MissingRequirementError, match="needs mmcv"):
        require("mmcv", "mmdet")


def test_the_installed_packages_are_supported():
    require(*SUPPORTED)


def test_compat_imports_without_torch_and_openmmlab():
    """The package and its requirements are what must work in the poorest installation: here only the library."""
    script = f"""
        import sys, types
        package = types.ModuleType("ce_mm")
        package.__path__ = [{str(ROOT / "ce_mm")!r}]
        sys.modules["ce_mm"] = package
        import ce_mm.compat, ce_mm.compat.requirements
        heavy = {{"torch", "torchvision", "numpy", *ce_mm.compat.requirements.SUPPORTED}} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
