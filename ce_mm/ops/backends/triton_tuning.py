"""How a Triton kernel comes by its configuration, a size of tile and a number of warps: by trial, or as the first.

A trial runs every configuration a hundred times, once for each kind of call, and Triton keeps the winner beside the
compiled kernels on disk, so that the next process takes the same. It allocates nothing: Triton's own would take 256 MB
to clear caches with, in the middle of a training. Kinds are coarse, so that pictures of a new size seldom bring one.

Another configuration adds up in another order. So under ``torch.use_deterministic_algorithms(True)`` there are no
trials, and every call takes the first configuration.
"""
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton

#: What a trial launches: so many rounds of so many, with the GPU held up by so many cycles, about two milliseconds.
ROUNDS, LAUNCHES, HOLD = 5, 20, 4_000_000
#: Positions of the sizes of map that are told apart; beyond, all are alike.
SIZES = 64, 256, 1024


class Tuned:
    """A kernel, launched as Triton's are, with an own list of configurations for each kind of product."""

    def __init__(
        self, kernel: triton.runtime.JITFunction, configurations: Mapping[tuple[str, int], Sequence[tuple[int, int]]]
    ) -> None:
        """``configurations``: by PRECISION and ROWS pairs of TILE and warps; the interpreter has only one."""
        if triton.knobs.runtime.interpret:
            configurations = dict.fromkeys(configurations, ((1024, 1),))
        self.kernel = kernel
        self.tuners = {product: _tuner(kernel, pairs) for product, pairs in configurations.items()}

    def __getitem__(self, grid: tuple[int] | Callable[[dict[str, int]], tuple[int]]) -> Callable[..., None]:
        return functools.partial(self._launch, grid)

    def _launch(self, grid: Any, *arguments: Any, PRECISION: str, ROWS: int, **named: Any) -> None:
        tuner = self.tuners[PRECISION, ROWS]
        named |= dict(PRECISION=PRECISION, ROWS=ROWS)
        if torch.are_deterministic_algorithms_enabled():
            self.kernel[grid](*arguments, **named, **tuner.configs[0].all_kwargs())
        else:
            tuner[grid](*arguments, **named)


def _tuner(kernel: triton.runtime.JITFunction, pairs: Sequence[tuple[int, int]]) -> triton.runtime.Autotuner:
    configurations = [triton.Config({"TILE": tile}, num_warps=warps) for tile, warps in pairs]
    return triton.autotune(configurations, key=["size", "LAST"], do_bench=_milliseconds, cache_results=True)(kernel)


def size_class(positions: int) -> int:
    """The kernels' argument ``size``, which only their tuners read."""
    return next((size for size in SIZES if positions <= size), SIZES[-1] + 1)


def _milliseconds(call: Callable[[], None], quantiles: Sequence[float]) -> list[float]:
    """How long a launch takes the GPU, for Triton's tuner.

    While the GPU is held up, launches queue, or short kernels would be timed by how fast Python launches them.
    """
    call()
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(HOLD)
        start.record()
        for _ in range(LAUNCHES):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / LAUNCHES)
    return [statistics.median(times)]
