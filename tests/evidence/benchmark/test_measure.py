"""Times, ratios, exponents and bytes are what they are called."""
import pytest
import torch
from torch import nn

from tools.evidence.benchmark.cases import Case
from tools.evidence.benchmark.measure import (
    Clock,
    exponent,
    measure_cases,
    peak_bytes,
    saved_bytes,
    settle,
    summarise,
    take_turns,
)

CPU = torch.device("cpu")
SIZES = [4, 8, 16, 32, 64]


@pytest.mark.parametrize("power", [-1, 0, 0.5, 1, 2])
def test_the_exponent_of_a_power_law_is_exact(power):
    assert exponent(SIZES, [3.7 * size**power for size in SIZES]) == pytest.approx(power, abs=1e-12)


def test_a_ratio_is_the_median_of_the_ratios_inside_the_rounds():
    times = {"base": {"step": [1.0, 2.0, 4.0]}, "other": {"step": [3.0, 4.0, 4.0]}}
    summary = summarise(times, "base")
    assert summary["other"]["step"] == dict(ms=4.0, low=1.5, ratio=2.0, high=2.5)
    assert summary["base"]["step"]["ratio"] == 1


def test_all_take_turns_twice_and_neither_the_first_time_nor_warm_up_rounds_count():
    order = []

    def step(name):
        order.append(name)
        return {"time": float(len(order))}

    taken = take_turns({name: lambda name=name: step(name) for name in "abc"}, warmup=1, rounds=2)
    assert "".join(order) == "aabbccbbccaaccaabb"
    assert taken == {"a": {"time": [12.0, 16.0]}, "b": {"time": [8.0, 18.0]}, "c": {"time": [10.0, 14.0]}}


def test_stages_run_in_order_and_their_times_add_up_to_the_step():
    seen = []
    times = Clock(CPU).time({"first": lambda: seen.append(1), "second": lambda: seen.append(2)})
    assert seen == [1, 2]
    assert times["step"] == times["first"] + times["second"] > 0


class PatientGPU:
    """In place of torch.cuda: the launches of a step take 1000 cycles."""

    def __init__(self):
        self.waits, self.Event = [], lambda enable_timing: self

    def _sleep(self, cycles):
        self.waits.append(cycles)

    def query(self):
        return self.waits[-1] < 1000

    def record(self):
        pass

    synchronize = record

    def elapsed_time(self, end):
        return 2.0


def test_a_gpu_waits_longer_until_a_step_is_launched_before_it_starts(monkeypatch):
    gpu, seen = PatientGPU(), []
    monkeypatch.setattr("torch.cuda", gpu)
    clock = Clock(torch.device("cuda"))
    clock.cycles = 300
    times = clock.time({"first": lambda: seen.append(1), "second": lambda: seen.append(2)})
    assert gpu.waits == [300, 600, 1200]
    assert seen == [1, 2] * 4  # three times behind a wait, once for the wall
    assert (times["first"], times["second"], times["step"]) == (2.0, 2.0, 4.0)
    assert times["wall"] >= 0


class Twice(nn.Module):
    """Keeps one new map for backward (the exponential), x no longer; has a parameter of one map."""

    def __init__(self, elements):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(elements))

    def forward(self, x):
        return x.exp() * self.scale


def twice(elements=2**16):
    x = torch.randn(elements, requires_grad=True)
    module = Twice(elements)
    return Case(module, lambda: module(x), torch.ones(elements), (x,))


def test_saved_bytes_count_a_storage_once_and_no_parameters():
    assert saved_bytes(twice()) == 4 * 2**16


def test_peak_bytes_are_the_most_that_is_allocated_at_one_time():
    # Forward: the exponential and the result. Backward: gradients of the exponential and of the scale, then of x.
    maps = peak_bytes(twice(), CPU) / (4 * 2**16)
    assert 4 <= maps <= 5.01
    assert maps == pytest.approx(round(maps), abs=0.01)
    assert peak_bytes(twice(2**17), CPU) == pytest.approx(2 * maps * 4 * 2**16, rel=0.01)


def test_settling_leaves_the_statistics_of_the_input_and_the_momentum_as_it_was():
    norm = torch.nn.BatchNorm2d(3)
    x = 5 + torch.randn(4, 3, 8, 8)
    settle(norm, lambda: norm(x))
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
    assert norm.momentum == 0.1


def test_a_case_leaves_neither_gradients_nor_graph_behind():
    case = twice()
    results = measure_cases({"one": case, "two": twice()}, Clock(CPU), warmup=0, rounds=2)
    assert case.output is None and case.inputs[0].grad is None and case.module.scale.grad is None
    assert set(results["two"]) == {"forward", "backward", "step", "eval", "saved", "peak"}
    assert results["two"]["saved"]["ratio"] == 1
