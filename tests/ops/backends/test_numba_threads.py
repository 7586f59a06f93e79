"""Kernels run on PyTorch's own threads, wherever a process may call them, and give the same numbers everywhere."""
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader

from ce_mm.layers import CENorm
from ce_mm.ops import RELU
from ce_mm.ops.backends import choose

pytest.importorskip("numba")

from ce_mm.ops.backends import numba_cache, numba_ready, numba_threads
from ce_mm.ops.backends.numba_threads import TAKEN, Kernel, reader, take

_read = reader(2)


def _count(address):
    """Count the threads that begin, and units until there are enough of them."""
    counters, enough = _read(address)
    take(counters, 1)
    while take(address + TAKEN, 1) < enough:
        take(counters + 8, 1)


@pytest.fixture(scope="module")
def count():
    """A function of how many units and threads: how many of both there were."""
    kernel = Kernel(_count)

    def counted(units, threads, counters=None):
        counters = (ctypes.c_int64 * 2)() if counters is None else counters
        kernel((ctypes.addressof(counters), units), threads)
        return tuple(counters)

    return counted


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    """As many of PyTorch's, and the backend chosen."""
    monkeypatch.setenv("CE_MM_BACKEND", "numba")
    choose.cache_clear()
    assert choose(torch.device("cpu"), torch.float32, 16).__name__ == numba_ready.PASSES
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    choose.cache_clear()


def step(samples=8, side=40):
    """A step of training on a map that is worth two threads: all that comes of it."""
    generator = torch.Generator().manual_seed(samples)
    ce = CENorm(16)
    x, dy = (torch.randn(samples, 16, side, side, generator=generator) for _ in range(2))
    x.requires_grad_()
    for value in ce.parameters():
        with torch.no_grad():
            value.copy_(torch.rand(value.shape, generator=generator))
    y = ce(x, rectifier=RELU)
    return [y.detach(), *torch.autograd.grad(y, [x, *ce.parameters()], dy), *ce.buffers()]


def same(one, other):
    return all(map(torch.equal, one, other))


def close(one, other):
    """Whether sums were taken in another order at most."""
    return all(torch.allclose(mine, its, rtol=1e-4, atol=1e-5) for mine, its in zip(one, other, strict=True))


def test_every_thread_that_is_asked_for_works_and_all_units_are_done_once(count):
    for threads in (1, 2, 3):
        assert count(1000, threads) == (threads, 1000)


def test_a_map_is_worth_as_many_threads_as_pytorch_has_if_it_is_large():
    assert [numba_threads.threads_for(elements) for elements in (0, 2**14, 2**15, 2**20)] == [1, 1, 2, 2]
    torch.set_num_threads(1)
    assert numba_threads.threads_for(2**20) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="nothing here counts a process's threads")
def test_there_is_no_second_pool(count):
    torch.rand(10**6).sin()
    before = set(os.listdir("/proc/self/task"))
    assert count(1000, 2) == (2, 1000)
    assert set(os.listdir("/proc/self/task")) == before


@pytest.mark.parametrize("threads", [1, 2])
def test_results_repeat_bit_for_bit_on_as_many_threads(threads):
    on_two = step()
    torch.set_num_threads(threads)
    first = step()
    assert all(same(step(), first) for _ in range(5))
    assert close(first, on_two)


def test_threads_of_python_s_get_each_its_own_result():
    sizes = [2, 8, 5, 8, 3, 8]
    alone = [step(size) for size in sizes]
    with ThreadPoolExecutor(3) as pool:
        for results in (list(pool.map(step, sizes)) for _ in range(5)):
            assert all(map(same, results, alone))


def test_without_gnu_s_way_into_the_pool_one_thread_gives_the_same(monkeypatch):
    expected = step()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: types.SimpleNamespace())
    monkeypatch.setattr(numba_threads, "_pool", numba_threads._find_pool())
    assert numba_threads.threads_for(2**20) == 1
    assert close(step(), expected)


def forked(function):
    """The exit status of a forked process that runs it."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join(60)
    process.kill()
    return process.exitcode


def test_a_forked_process_runs_kernels_though_the_pool_s_threads_are_gone(count):
    assert count(1000, 2) == (2, 1000)
    child = lambda: sys.exit(count(1000, numba_threads.threads_for(2**20)) != (1, 1000))  # noqa: E731
    assert forked(child) == 0


def test_a_forked_process_trains_a_step_on_one_thread():
    torch.set_num_threads(1)
    expected = step()
    torch.set_num_threads(2)
    step()

    def child():
        torch.set_num_threads(1)  # without which PyTorch's own operations would wait for ever, as anywhere
        sys.exit(not same(step(), expected))

    assert forked(child) == 0


class Steps(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return step()[0]


def test_so_do_workers_that_load_data():
    step()
    results = list(DataLoader(Steps(), batch_size=None, num_workers=2))
    torch.set_num_threads(1)
    assert len(results) == 4 and all(torch.equal(result, step()[0]) for result in results)


@pytest.fixture
def interruptible():
    """Also in a process that a shell started in the background, which ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_comes_after_the_kernel(count):
    units, counters = 3 * 10**7, (ctypes.c_int64 * 2)()
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        count(units, 2, counters)
        timer.join()
    assert tuple(counters) == (2, units)
    assert count(1000, 2) == (2, 1000)


FEWER = """
import torch
from ce_mm.ops.backends import choose
from test_numba_threads import step
torch.set_num_threads(2)
assert choose(torch.device("cpu"), torch.float32, 16).__name__.endswith("numba_passes")
torch.save(step(), {file!r})
"""


def test_fewer_threads_than_asked_for_do_all_the_work(tmp_path):
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = os.environ | dict(OMP_THREAD_LIMIT="1", PYTHONPATH=paths)
    code = FEWER.format(file=str(tmp_path / "results"))
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert close(torch.load(tmp_path / "results"), step())


def raising(address):
    if address == 1:
        raise ValueError


def test_no_kernel_of_the_passes_can_raise_an_error(tmp_path, monkeypatch):
    of_passes = [file.read_bytes() for file in numba_cache.folder().glob("numba_*.nbc")]
    monkeypatch.setattr(numba_cache.config, "CACHE_DIR", str(tmp_path))
    Kernel(raising)
    (of_raising,) = [file.read_bytes() for file in numba_cache.folder().glob("*.nbc")]
    assert b"picklebuf" in of_raising  # of what is raised
    assert of_passes and not any(b"picklebuf" in code for code in of_passes)
