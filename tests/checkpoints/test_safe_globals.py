"""What mmengine writes is allowed where it is read, and nowhere and never else."""
import datetime
import inspect
import pathlib
import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import pickles as p
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader
from torch.serialization import get_safe_globals, safe_globals

import ce_mm  # noqa: F401
from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint


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
        with ThreadPoolExecutor() as pool, pytest.raises(UnpicklingError, match=r"HistoryBuffer|getattr"):
            pool.submit(torch.load, path).result()
        return storage

    read_checkpoint(path, meanwhile)


# --- what is written --------------------------------------------------------------------------------------------------

#: Name of a scheduler's parameter -> a value, for those that have no default or none that a scheduler would take.
ARGUMENTS = dict(
    param_name="lr", gamma=0.5, step_size=1, milestones=[1], T_max=3, periods=[2, 2], restart_weights=[1, 1], end=5,
    total_steps=5, eta_max=0.2, eta_min=0.0,
)  # fmt: skip


def schedulers() -> Iterator[tuple[str, dict]]:
    for name, kind in sorted(PARAM_SCHEDULERS.module_dict.items()):
        base = next(each for each in kind.__mro__ if each.__name__.endswith("ParamScheduler"))
        needed = set(inspect.signature(base.__init__).parameters) - (set() if kind is base else {"param_name"})
        arguments = {argument: value for argument, value in ARGUMENTS.items() if argument in needed}
        yield name, arguments
        if "OneCycle" in name:
            yield name, arguments | dict(anneal_strategy="linear")


@pytest.mark.parametrize("name, arguments", schedulers())
def test_the_state_of_every_scheduler_of_mmengine_comes_back(tmp_path, read, name, arguments):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)
    scheduler = PARAM_SCHEDULERS.build(dict(type=name, optimizer=optimizer, **arguments))
    torch.save({"param_schedulers": [scheduler.state_dict()]}, tmp_path / "checkpoint.pth")
    assert read(tmp_path / "checkpoint.pth")["param_schedulers"] == [scheduler.state_dict()]


VALUES = [
    pathlib.Path("/a/b.pth"), pathlib.PureWindowsPath("c:/a"), datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
    datetime.timedelta(seconds=1), frozenset({1}), {1, "a"}, range(3), slice(1, None), 1 + 2j, Counter("aab"),
    OrderedDict(a=1), ConfigDict(a=dict(b=[1])), torch.device("cpu"), torch.float32, torch.Size([1, 2]),
    torch.__version__,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_plain_value_comes_back(tmp_path, value):
    torch.save({"meta": {"value": value}}, tmp_path / "checkpoint.pth")
    back = read_checkpoint(tmp_path / "checkpoint.pth")["meta"]["value"]
    assert back == value and type(back) is type(value)


def test_of_a_defaultdict_what_is_in_it_comes_back(tmp_path):
    torch.save({"meta": defaultdict(list, a=[1])}, tmp_path / "checkpoint.pth")
    assert read_checkpoint(tmp_path / "checkpoint.pth")["meta"] == {"a": [1]}


def test_a_curve_comes_back_where_a_statistic_of_ones_own_is_registered(tmp_path, read, monkeypatch):
    monkeypatch.setattr(HistoryBuffer, "_statistics_methods", dict(HistoryBuffer._statistics_methods))
    HistoryBuffer.register_statistics(median)
    torch.save({"loss": HistoryBuffer([1.0, 2.0, 9.0], [1, 1, 1])}, tmp_path / "checkpoint.pth")
    assert read(tmp_path / "checkpoint.pth")["loss"].statistics("median") == 2


def median(buffer: HistoryBuffer) -> float:
    return float(np.median(buffer.data[0]))


# --- what is not ------------------------------------------------------------------------------------------------------

ONE_CYCLE = p.name("mmengine.optim.scheduler.param_scheduler", "OneCycleParamScheduler")
PATH = p.name("pathlib", "PurePosixPath")


@pytest.mark.parametrize("value, message", [
    (p.call(p.name("builtins", "getattr"), ONE_CYCLE, p.text("__init__")), "builtins.getattr"),
    (p.call(ONE_CYCLE), "no checkpoint at all"),
    (p.new(ONE_CYCLE), "no checkpoint at all"),
    (p.build(p.call(PATH, p.text("a")), b"}" + p.text("_str") + p.NONE + b"s"), "Can only build"),
    (p.new(PATH, p.text("a")), "no checkpoint at all"),
    (p.call(p.name("numpy", "ndarray"), p.numbers(10**12)), "no checkpoint at all"),
    (p.call(p.name("__builtin__", "bytes"), p.number(10**12)), "no checkpoint at all"),
    (p.call(p.name("builtins", "list")), "no checkpoint at all"),
], ids=["another function", "a call", "an object", "a path set", "a path made anew", "an array of a size",
        "bytes of a size", "a class called"])
def test_a_name_gives_what_it_is_for_and_no_more(tmp_path, value, message):
    (tmp_path / "checkpoint.pth").write_bytes(p.zip_file(p.checkpoint(value)))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "checkpoint.pth")
