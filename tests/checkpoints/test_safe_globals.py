"""What mmengine writes is allowed where it is read, and nowhere and never else."""
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch.serialization import get_safe_globals, safe_globals

import ce_mm  # noqa: F401
from ce_mm.checkpoints.reading import read_checkpoint


class Own:
    pass


@pytest.fixture
def path(tmp_path) -> Path:
    """A checkpoint whose tensor is read before its curve."""
    torch.save({"w": torch.ones(1), "loss": HistoryBuffer([1.0], [1])}, tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth"


@pytest.fixture(params=[read_checkpoint, lambda *args: CheckpointLoader.load_checkpoint(str(args[0]), *args[1:])],
                ids=["ours", "mmengine's"])  # fmt: skip
def read(request):
    return request.param


def test_a_thread_that_has_read_takes_nothing_from_one_that_still_reads(path, read):
    both, first_has_read = threading.Barrier(2, timeout=30), threading.Event()

    def first(storage, location):
        both.wait()
        return storage

    def second(storage, location):
        both.wait()
        assert first_has_read.wait(30)
        return storage

    before = set(get_safe_globals())
    with ThreadPoolExecutor() as pool:
        pool.submit(read, path, first).add_done_callback(lambda _: first_has_read.set())
        assert pool.submit(read, path, second).result()["loss"].mean() == 1
    assert set(get_safe_globals()) == before


def test_what_the_user_allows_while_another_thread_reads_stays_allowed(path, read):
    with ExitStack() as stack:

        def meanwhile(storage, location):
            stack.enter_context(safe_globals([Own]))
            return storage

        before = set(get_safe_globals())
        read(path, meanwhile)
        assert set(get_safe_globals()) == before | {Own}


def test_what_the_user_allows_under_one_of_our_names_stays_allowed(path, read):
    with safe_globals([HistoryBuffer]):
        read(path)
        assert HistoryBuffer in get_safe_globals()


def test_a_checkpoint_is_read_while_another_is(path, read):
    def meanwhile(storage, location):
        assert read(path)["loss"].mean() == 1
        return storage

    assert read(path, meanwhile)["loss"].mean() == 1


def test_other_threads_are_allowed_nothing_meanwhile(path):
    def meanwhile(storage, location):
        with ThreadPoolExecutor() as pool, pytest.raises(UnpicklingError, match="HistoryBuffer|getattr"):
            pool.submit(torch.load, path).result()
        return storage

    read_checkpoint(path, meanwhile)
