"""Where there are compiled passes and where not, and what is said of it; Numba is not imported for anything else."""
import logging
import os
import platform
import sys
import threading
import time

import pytest
import torch

from ce_mm.ops import backends
from ce_mm.ops.backends import BACKENDS, Backend, choose, numba_ready, plain

CPU, TYPES = torch.device("cpu"), (torch.float32, torch.float16, torch.bfloat16)
CACHED = choose, backends._has_numba, numba_ready.trouble


@pytest.fixture(autouse=True)
def fresh(monkeypatch, caplog):
    """A process that has chosen nothing yet."""
    monkeypatch.delenv("CE_MM_BACKEND", raising=False)
    for cached in CACHED:
        cached.cache_clear()
    with caplog.at_level(logging.INFO):
        yield
    monkeypatch.undo()
    for cached in CACHED:
        cached.cache_clear()


@pytest.fixture
def passes(monkeypatch, tmp_path):
    """A function: as if the file of the passes, on a machine that has Numba, held this code."""
    pytest.importorskip("numba")

    def hold(code):
        (tmp_path / "a_module_of_passes.py").write_text(code, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(numba_ready, "PASSES", "a_module_of_passes")
        monkeypatch.setitem(BACKENDS, "numba", Backend("a_module_of_passes", backends._numba_reaches))

    yield hold
    sys.modules.pop("a_module_of_passes", None)


def said(caplog):
    """The one line in the log."""
    (record,) = caplog.records
    assert record.name == "ce_mm.ops.backends" and record.levelno == logging.WARNING
    assert "plain PyTorch calls" in record.getMessage() and "\n" not in record.getMessage()
    return record.getMessage()


def test_a_cpu_s_maps_are_numba_s_but_not_those_of_float64_or_of_wide_groups(passes):
    passes("")
    for dtype in TYPES:
        assert choose(CPU, dtype, 64).__name__ == "a_module_of_passes"
    assert choose(CPU, torch.float64, 16) is plain
    assert choose(CPU, torch.float32, 128) is plain


@pytest.mark.parametrize("name", ["numba", "llvmlite.binding"])
def test_without_numba_one_line_in_the_log_says_what_to_install(monkeypatch, caplog, name):
    for module in (numba_ready.PASSES, "ce_mm.ops.backends.numba_cache"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    assert all(choose(CPU, dtype, 16) is plain for dtype in TYPES)
    assert "pip install" in said(caplog)


def test_what_cannot_be_compiled_runs_in_plain_and_the_log_says_so_in_one_line(passes, caplog):
    passes("raise RuntimeError('LLVM does not know this machine.\\nThe rest is long.')")
    assert all(choose(CPU, dtype, 16) is plain for dtype in TYPES)
    assert "could not be compiled: RuntimeError: LLVM does not know this machine." in said(caplog)


def test_a_cpu_without_vectors_runs_in_plain(passes, monkeypatch, caplog):
    passes("")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", lambda: dict(avx2=True, fma=False))
    assert choose(CPU, torch.float32, 16) is plain
    assert "this CPU has no fma, f16c" in said(caplog)


def test_a_machine_of_another_kind_runs_in_plain_without_a_word(monkeypatch, caplog):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert choose(CPU, torch.float32, 16) is plain
    assert not caplog.records


@pytest.mark.parametrize("asked", ["plain", "-numba", "triton"])
def test_nobody_looks_for_numba_where_it_is_not_to_be_used(passes, monkeypatch, asked):
    passes("raise AssertionError")
    monkeypatch.setattr(numba_ready, "trouble", None)
    monkeypatch.setenv("CE_MM_BACKEND", asked)
    assert choose(CPU, torch.float32, 16) is plain


def test_nor_for_what_it_does_not_reach(monkeypatch):
    monkeypatch.setattr(numba_ready, "trouble", None)
    monkeypatch.setattr(backends, "_has_tf32", lambda device: False)
    assert choose(torch.device("cuda", 0), torch.float32, 16) is plain
    assert choose(CPU, torch.float64, 16) is choose(CPU, torch.float32, 65) is plain
    assert choose(CPU, torch.float32, 16, empty=True) is plain


def test_threads_that_need_the_passes_at_once_wait_for_them(passes):
    passes("import time\ntime.sleep(0.3)\ndone = True")
    chosen = []
    threads = [threading.Thread(target=lambda: chosen.append(choose(CPU, torch.float32, 16).done)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert chosen == [True, True, True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_a_process_that_forks_while_another_thread_compiles_has_the_passes_in_its_child(passes):
    passes("import time\ntime.sleep(0.5)\ndone = True")
    thread = threading.Thread(target=choose, args=(CPU, torch.float32, 16))
    thread.start()
    while "a_module_of_passes" not in sys.modules:
        time.sleep(0.01)
    child = os.fork()
    if child == 0:
        os._exit(0 if choose(CPU, torch.float32, 16).done else 1)
    thread.join()
    end = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
    assert ended == (child, 0)


def test_warming_up_says_where_they_are_kept():
    pytest.importorskip("numba")
    assert list(numba_ready.warm_up().glob("*.nbc"))


def test_warming_up_fails_where_there_are_none_or_they_cannot_be_kept(passes, monkeypatch, tmp_path):
    passes("raise RuntimeError('no')")
    with pytest.raises(RuntimeError, match="there are no compiled passes for this CPU: they could not be compiled"):
        numba_ready.warm_up()
    from ce_mm.ops.backends import numba_cache

    (tmp_path / "file").touch()
    monkeypatch.setattr(numba_cache.config, "CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(RuntimeError, match=r"compiled passes cannot be kept: .*file"):
        numba_ready.warm_up()
