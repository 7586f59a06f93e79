"""Compiled functions are kept, found again, made anew where they must be, and never taken from others."""
import logging
import multiprocessing
import os
import stat
import sys

import pytest

numba = pytest.importorskip("numba")
numba_cache = pytest.importorskip("ce_mm.ops.backends.numba_cache")

SIGNATURE = numba.types.intp(numba.types.intp)


def double(number):
    return 2 * number


def compiled():
    """The function, and whether it was found."""
    function = numba_cache.compiled(double, SIGNATURE)
    assert function.ctypes(21) == 42
    return function.cache_hits == 1


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A folder where nothing is kept yet, of a process that has said nothing yet."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba_cache, "failures", [])
    numba_cache._announce.cache_clear()
    yield tmp_path
    numba_cache._announce.cache_clear()


def test_what_is_compiled_is_found_the_next_time(empty):
    assert not compiled()
    assert compiled()
    assert not numba_cache.failures


def test_only_a_process_that_compiles_says_so_once_where_and_how_to_avoid_it(empty, caplog):
    compiled()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(empty) in record.getMessage() and "ce_mm warmup" in record.getMessage()
    numba_cache.compiled(lambda number: number, SIGNATURE)
    numba_cache._announce.cache_clear()
    compiled()
    assert len(caplog.records) == 1


def test_the_place_is_the_one_that_is_named_or_the_user_s_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    assert numba_cache.folder().parent == tmp_path / "home/.cache/ce_mm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert numba_cache.folder().parent == tmp_path / "xdg/ce_mm"
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "named"))
    assert numba_cache.folder().parent == tmp_path / "named/ce_mm"


def test_nothing_else_of_numba_s_is_kept_elsewhere_than_before(empty):
    compiled()
    locators = numba.config.CACHE_LOCATOR_CLASSES
    assert locators == os.environ.get("NUMBA_CACHE_LOCATOR_CLASSES", "")


@pytest.fixture
def fresh_state():
    numba_cache._state.cache_clear()
    yield
    numba_cache._state.cache_clear()


def test_another_state_of_any_of_the_files_has_another_folder(empty, fresh_state, monkeypatch):
    monkeypatch.setattr(numba_cache, "__file__", str(empty / "numba_cache.py"))
    folders = []
    for name, text in {"numba_cache.py": "", "numba_tiles.py": "a", "other.py": "", "numba_passes.py": "b"}.items():
        (empty / name).write_text(text, encoding="utf-8")
        numba_cache._state.cache_clear()
        folders.append(numba_cache.folder())
    assert folders[1] == folders[2]
    assert len(set(folders)) == 3


def test_so_has_another_version_and_another_cpu(empty, fresh_state, monkeypatch):
    folders = [numba_cache.folder()]
    for of, name in ((numba, "__version__"), (numba_cache.llvmlite, "__version__"), (numba.config, "CPU_NAME")):
        monkeypatch.setattr(of, name, "another")
        numba_cache._state.cache_clear()
        folders.append(numba_cache.folder())
    assert len(set(folders)) == 4


def test_a_damaged_file_is_made_anew(empty):
    compiled()
    (code,) = numba_cache.folder().glob("*.nbc")
    code.write_bytes(code.read_bytes()[:100])
    assert not compiled()
    assert compiled()


def seen(mode, owner):
    return os.stat_result((stat.S_IFDIR | mode, 0, 0, 2, owner, 0, 0, 0, 0, 0))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no owners here")
def test_a_folder_is_trusted_where_only_the_user_and_the_machine_s_own_can_have_written(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert numba_cache._is_ours(seen(0o755, 1000)) and numba_cache._is_ours(seen(0o700, 0))
    assert not numba_cache._is_ours(seen(0o755, 1001))
    assert not numba_cache._is_ours(seen(0o775, 1000)) and not numba_cache._is_ours(seen(0o757, 1000))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no owners here")
@pytest.mark.parametrize("level", [".", ".."])
def test_from_a_folder_that_others_may_write_to_nothing_is_loaded(empty, caplog, level):
    compiled()
    (numba_cache.folder() / level).chmod(0o777)
    caplog.clear()
    assert not compiled()
    assert "others may write to it" in caplog.text and "NUMBA_CACHE_DIR" in caplog.text
    assert len(numba_cache.failures) == 1


def test_where_no_folder_can_be_made_a_process_compiles_for_itself_and_says_so_once(empty, monkeypatch, caplog):
    (empty / "file").touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(empty / "file"))
    assert not compiled() and not compiled()
    assert [record.getMessage().count("They are not kept") for record in caplog.records] == [1]


def test_so_it_does_on_a_full_disk(empty, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    assert not compiled()
    assert "No space left" in str(numba_cache.failures)


def test_what_is_kept_in_a_folder_that_may_only_be_read_is_found(empty, monkeypatch):
    compiled()
    monkeypatch.setattr(numba_cache, "_alone", None)
    assert compiled()


def compile_with_others(start):
    start.wait(60)
    compiled()
    sys.exit(numba_cache._announce.cache_info().currsize)


def test_of_processes_that_begin_at_once_one_compiles_and_the_others_wait_for_it(empty):
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(4)
    processes = [fork.Process(target=compile_with_others, args=(start,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(process.exitcode for process in processes) == [0, 0, 0, 1]


def test_a_process_that_holds_the_lock_for_too_long_is_not_waited_for(empty, monkeypatch):
    pytest.importorskip("fcntl")
    monkeypatch.setattr(numba_cache, "PATIENCE", 0.2)
    with numba_cache._alone(numba_cache.folder()):
        assert not compiled()
    assert compiled()
