"""Trials of the Triton kernels' configurations: when there are none, what tells two calls apart, and what is kept."""
from types import SimpleNamespace

import pytest
import torch
from pass_cases import problem
from triton_modules import load

triton = pytest.importorskip("triton")

TARGET = triton.backends.compiler.GPUTarget("cuda", 90, 32)
not_interpreted = pytest.mark.skipif(
    triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: the tuner has one configuration"
)


class Process:
    """The pass that sums, as a new process loads it, with launches and trials that are only noted."""

    def __init__(self, monkeypatch):
        self.launched, self.tried = [], []
        active = SimpleNamespace(get_current_target=lambda: TARGET)
        monkeypatch.setattr(triton.runtime.autotuner, "driver", SimpleNamespace(active=active))
        self.passes = load("triton_passes")
        for tuner in self.passes._sums_kernel.tuners.values():
            monkeypatch.setattr(tuner, "_bench", self._try)
        monkeypatch.setattr(self.passes._sums_kernel.kernel, "run", self._run)

    def _try(self, *_, config, **__):
        self.tried.append(config)
        return [1.0 if config.num_warps == 1 else 2.0]

    def _run(self, *_, TILE, num_warps, **__):
        self.launched.append((TILE, num_warps))

    def run(self, h, w, c=16, g=16):
        p = problem(1, c, h, w, g, dtype=torch.bfloat16)
        self.passes.moments(p.x, p.shift, p.g, True, False)


@pytest.fixture
def new_process(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return lambda: Process(monkeypatch)


@not_interpreted
def test_the_next_process_takes_what_a_trial_found_without_one(new_process):
    first, second = new_process(), new_process()
    first.run(7, 7)
    second.run(7, 7)
    assert len(first.tried) == 3
    assert not second.tried
    assert first.launched == second.launched == [(512, 1)]


@not_interpreted
def test_deterministic_algorithms_take_the_first_configuration_without_a_trial(new_process):
    process = new_process()
    process.run(7, 7)
    torch.use_deterministic_algorithms(True)
    try:
        process.run(7, 7)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(process.tried) == 3
    assert process.launched == [(512, 1), process.passes.SUMS["tf32", 16][0]]


@not_interpreted
def test_large_pictures_of_all_sizes_share_a_trial(new_process):
    process = new_process()
    process.run(50, 84)
    process.run(200, 304)
    process.run(101, 151, g=4)
    assert len(process.tried) == 3
    process.run(14, 14)
    assert len(process.tried) == 6


@not_interpreted
def test_a_product_of_64_half_rows_has_one_configuration_and_no_trial(new_process):
    process = new_process()
    process.run(7, 7, c=64, g=64)
    assert not process.tried
    assert process.launched


class Clock:
    """A GPU's: events that follow each other in a millisecond a launch."""

    now = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Clock.now

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return end.at - self.at


def test_a_trial_times_a_launch_and_allocates_nothing(monkeypatch):
    def call():
        Clock.now += 1

    tuning = load("triton_tuning")
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(torch, "empty", None)
    assert tuning._milliseconds(call, (0.5,)) == [1.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_trial_on_a_gpu_takes_no_memory():
    x = torch.randn(1 << 20, device="cuda")
    before = torch.cuda.max_memory_allocated()
    (milliseconds,) = load("triton_tuning")._milliseconds(lambda: x.mul_(1.0), (0.5,))
    assert 0 < milliseconds < 10
    assert torch.cuda.max_memory_allocated() == before
