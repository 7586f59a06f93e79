"""What stands in for mmcv's compiled operators is found by mmcv and mmengine, and never replaces compiled ones."""
import subprocess
import sys
import textwrap

import mmcv.ops
import mmengine.utils.dl_utils
import pytest

from ce_mm.compat import mmcv_ext

stands_in = pytest.mark.skipif(not mmcv_ext.install_mmcv_ext(), reason="mmcv has its compiled operators here")


@stands_in
def test_mmcv_and_mmengine_find_the_module():
    assert mmengine.utils.dl_utils.mmcv_full_available()
    assert mmcv.utils.ext_loader.load_ext("_ext", ["nms", "upfirdn2d"]) is mmcv._ext is sys.modules["mmcv._ext"]


@stands_in
def test_an_absent_operator_is_named_when_it_is_called():
    operator = mmcv._ext.upfirdn2d
    with pytest.raises(NotImplementedError, match=r"mmcv\._ext\.upfirdn2d.*full .not lite. mmcv"):
        operator(1, 2, three=3)


@stands_in
def test_pythons_own_questions_get_pythons_own_answer():
    assert not hasattr(mmcv._ext, "__path__")
    with pytest.raises(AttributeError, match="__wrapped__"):
        _ = mmcv._ext.__wrapped__


@stands_in
def test_a_second_installation_changes_nothing():
    before = sys.modules["mmcv._ext"]
    assert mmcv_ext.install_mmcv_ext()
    assert sys.modules["mmcv._ext"] is before


def python(script: str, **names: object) -> subprocess.CompletedProcess:
    """Run a script in a fresh interpreter; stdout and stderr together in ``stdout``."""
    head = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(script)],
        check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )


@stands_in
def test_the_log_says_once_and_when_first_used_whose_operators_these_are():
    run = python("""
        import torch
        import ce_mm
        import mmcv.ops
        print("before")
        for _ in range(2):
            mmcv.ops.nms(torch.zeros(1, 4), torch.ones(1), 0.5)
            mmcv.ops.roi_align(torch.zeros(1, 1, 2, 2), torch.zeros(1, 5), 2)
    """)
    before, after = run.stdout.split("before")
    assert before.count("torchvision and plain PyTorch stand in") == 0
    assert after.count("torchvision and plain PyTorch stand in") == 1


@stands_in
def test_mmcvs_report_of_the_environment_is_the_one_without_ce_mm():
    report = "from mmcv.utils import collect_env; print(sorted(collect_env().items()))"
    assert python(f"import ce_mm; {report}").stdout == python(report).stdout


def test_a_compiled_module_is_never_replaced(tmp_path):
    (tmp_path / "_ext.py").write_text("nms = 'the compiled one'\ndef __getattr__(name): return print")
    run = python("""
        import mmcv
        mmcv.__path__.insert(0, folder)
        from ce_mm.compat.mmcv_ext import install_mmcv_ext
        assert not install_mmcv_ext()
        import mmcv.ops
        assert mmcv._ext.nms == "the compiled one"
        assert not install_mmcv_ext()
    """, folder=str(tmp_path))
    assert "stand in" not in run.stdout


def test_a_compiled_module_is_not_replaced_even_if_broken(tmp_path):
    (tmp_path / "_ext.py").write_text("raise ImportError('undefined symbol')")
    run = python("""
        import mmcv
        mmcv.__path__.insert(0, folder)
        from ce_mm.compat.mmcv_ext import install_mmcv_ext
        assert not install_mmcv_ext()
        try:
            import mmcv.ops
        except ImportError as error:
            assert "undefined symbol" in str(error)
        else:
            raise AssertionError("mmcv.ops was imported over a broken extension")
    """, folder=str(tmp_path))
    assert "stand in" not in run.stdout
