"""How things are measured: times round robin in one run, compared round by round; memory by the bytes of PyTorch.

A machine's speed drifts, and other programs come and go. So the things that are compared take turns, one each in a
round, and a ratio is the median of the ratios inside the rounds.
"""
import ctypes
import gc
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from tools.evidence.benchmark import backends
from tools.evidence.benchmark.cases import Case

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's words about itself

#: The longest wait of the GPU before a measurement, in its cycles: about 0.1 s.
MAX_CYCLES = 2**28

#: Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

Stages = Mapping[str, Callable[[], object]]
#: Of what takes turns: a variant's, or a tuple that begins with it.
_Name = TypeVar("_Name", str, tuple)


def keep_freed_memory() -> None:
    """Tell glibc's malloc to give nothing back to the system; other C libraries stay as they are.

    A network's training steps, one like the other, soon get all their memory from what the step before has freed. A
    layer alone would give maps back and have every page of them mapped in again, at the price of its arithmetic; which
    variant pays that is chance.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**25)  # the largest that it takes
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class Clock:
    """Milliseconds of the stages of a step.

    On a GPU, events around each stage, after a wait of the GPU that is as long as the launches of the whole step take:
    so what counts is the work of the GPU, as inside a network, where launches run ahead. ``wall`` is then the time of
    one step from start to end with all its launches.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cycles = 2**20

    def time(self, stages: Stages) -> dict[str, float]:
        """The time of each stage, run one after the other, and their sum as ``step`` if there are several."""
        times = self._gpu(stages) if self.device.type == "cuda" else self._cpu(stages)
        laps = dict(zip(stages, times, strict=True))
        if len(laps) > 1:
            laps["step"] = sum(times)
        if self.device.type == "cuda":
            start = time.perf_counter()
            for stage in stages.values():
                stage()
            laps["host"] = 1e3 * (time.perf_counter() - start)
            torch.cuda.synchronize()
            laps["wall"] = 1e3 * (time.perf_counter() - start)
        return laps

    @staticmethod
    def _cpu(stages: Stages) -> list[float]:
        marks = [time.perf_counter()]
        for stage in stages.values():
            stage()
            marks.append(time.perf_counter())
        return [1e3 * (end - start) for start, end in itertools.pairwise(marks)]

    def _gpu(self, stages: Stages) -> list[float]:
        while True:
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(stages) + 1)]
            torch.cuda.synchronize()
            torch.cuda._sleep(self.cycles)
            marks[0].record()
            for stage, mark in zip(stages.values(), marks[1:], strict=True):
                stage()
                mark.record()
            too_short = marks[0].query()
            torch.cuda.synchronize()
            if not too_short or self.cycles >= MAX_CYCLES:
                return [start.elapsed_time(end) for start, end in itertools.pairwise(marks)]
            self.cycles *= 2


def take_turns(
    steps: Mapping[_Name, Callable[[], dict[str, float]]], warmup: int, rounds: int, progress: Callable = range
) -> dict[_Name, dict[str, list[float]]]:
    """Give every step its turn in each round, and keep what they return after ``warmup`` rounds.

    Every round starts with another step, so that none is always first. In its turn a step is run twice and the second
    one kept, since the first finds the caches as another step has left them: in a training a step follows its like.

    Args:
        steps: name -> a function that returns milliseconds by stage; it runs in the name's :func:`~backends.turn`.
        progress: called with the number of rounds, returns something to iterate over.

    Returns:
        name -> stage -> one number for each round.
    """
    taken: dict[_Name, dict[str, list[float]]] = {name: {} for name in steps}
    names = list(steps)
    for number in progress(warmup + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            with backends.turn(name):
                steps[name]()
                times = steps[name]()
            for stage, milliseconds in times.items():
                if number >= warmup:
                    taken[name].setdefault(stage, []).append(milliseconds)
    return taken


def training_step(case: Case, clock: Clock) -> dict[str, float]:
    """Times of ``forward``, ``backward`` and ``step`` (``host`` and ``wall`` too on a GPU)."""
    case.module.train()
    times = clock.time({"forward": case.forward, "backward": case.backward})
    case.clear()
    return times


def settle(network: nn.Module, run: Callable[[], object]) -> None:
    """Bring all running statistics to those of an input, as a long training leaves them.

    After the few steps of a benchmark they would be halfway from where they started, and normalise to maps that no
    trained network ever sees.

    Args:
        network: left in training mode.
        run: runs the network on the input.
    """
    averaging = [module for module in network.modules() if getattr(module, "momentum", None) is not None]
    momenta = [module.momentum for module in averaging]
    network.train()
    for module in averaging:
        module.momentum = 1.0
    with torch.no_grad():
        run()
    for module, momentum in zip(averaging, momenta, strict=True):
        module.momentum = momentum


def inference(case: Case, clock: Clock) -> dict[str, float]:
    """The time of a forward pass in inference, ``eval`` (``eval host`` and ``eval wall`` too on a GPU)."""
    case.module.eval()
    times = clock.time({"eval": case.inference})
    return {stage if stage == "eval" else f"eval {stage}": value for stage, value in times.items()}


def measure_cases(
    cases: Mapping[str, Case], clock: Clock, warmup: int, rounds: int, progress: Callable = range
) -> dict[str, dict[str, dict]]:
    """All that is told of a layer or a network, as ratios to the first of ``cases``.

    Returns:
        name -> ``forward``, ``backward``, ``step``, ``eval`` (and what the clock adds on a GPU) as
        :func:`summarise` gives them, and ``saved`` and ``peak`` with ``bytes`` and ``ratio``.
    """
    reference = next(iter(cases))
    times: dict[str, dict[str, dict]] = {name: {} for name in cases}
    for case in cases.values():
        settle(case.module, case.run)  # training steps on the same input leave the statistics where they are
    for measure in (training_step, inference):
        steps = {name: partial(measure, case, clock) for name, case in cases.items()}
        for name, summary in summarise(take_turns(steps, warmup, rounds, progress), reference).items():
            times[name] |= summary
    for kind, count in (("saved", saved_bytes), ("peak", partial(peak_bytes, device=clock.device))):
        sizes = {}
        for name, case in cases.items():
            with backends.turn(name):
                sizes[name] = count(case)
        for name, size in sizes.items():
            times[name][kind] = dict(bytes=size, ratio=size / sizes[reference])
    return times


def summarise(times: Mapping[str, Mapping[str, Sequence[float]]], reference: str) -> dict[str, dict[str, dict]]:
    """The median of every series, and the quartiles of its ratio to the reference's in the same round.

    Returns:
        name -> stage -> ``ms``, and ``low``, ``ratio`` (the median) and ``high``.
    """

    def summary(series: Sequence[float], base: Sequence[float]) -> dict[str, float]:
        ratios = [value / unit for value, unit in zip(series, base, strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return dict(ms=statistics.median(series), low=low, ratio=ratio, high=high)

    return {
        name: {stage: summary(series, times[reference][stage]) for stage, series in stages.items()}
        for name, stages in times.items()
    }


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope b of the straight line through the logarithms, for values that grow as ``a size^b``."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(v) for v in values]).slope


def saved_bytes(case: Case) -> int:
    """The bytes that a forward pass in training keeps for backward: each storage once, parameters and buffers apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*case.module.parameters(), *case.module.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    case.module.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        case.forward()
    case.clear()
    return sum(kept.values())


def peak_bytes(case: Case, device: torch.device) -> int:
    """The most that a training step allocates at one time through PyTorch, beside what is there before it.

    On a GPU this is what PyTorch's allocator counts; on a CPU it is summed from the allocations and releases that
    PyTorch's profiler sees. Gradients of the parameters are part of it.
    """
    case.module.train()
    case.clear()
    if device.type != "cuda":
        return _profiled_peak(case)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    case.forward()
    case.backward()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    case.clear()
    return peak


def _profiled_peak(case: Case) -> int:
    gc.collect()  # or what others left behind might be released, and counted, meanwhile
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        case.forward()
        case.backward()
        case.clear()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_bytes())["traceEvents"]
    changes = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    return max(itertools.accumulate(event["args"]["Bytes"] for event in changes))
