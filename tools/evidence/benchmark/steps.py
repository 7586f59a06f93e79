"""Measure a training step of ResNet-50 by what launches it: python -m tools.evidence.benchmark.steps --out DIR.

Needs torch alone. BN and CE, forward and backward under AMP without an optimizer, each from Python call by call, as one
CUDA graph, and by torch.compile, taking turns in one run. Where there is no GPU nothing can be captured, and nothing
is compiled: what runs then is the calls.
"""
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch

from tools.evidence.benchmark import front, network, records
from tools.evidence.benchmark.cases import Case, backbone_case
from tools.evidence.benchmark.layers import VARIANTS
from tools.evidence.benchmark.measure import Clock, settle, summarise, take_turns, training_step
from tools.evidence.benchmark.resnet import BLOCKS, resnet50
from tools.evidence.benchmark.settings import Settings

NOTES = (
    "A ratio is the median, over the rounds, of a step's time over that with BN, call by call, in the same round, with "
    "its quartiles; the time is the median. On a GPU the times are those of its work alone; *wall* is one step with "
    "all its launches, *host* what Python takes to launch them.",
)
#: Steps before a capture: kernels are compiled and chosen, and gradients' memory is that of the graph.
WARM_UP = 3


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """What launches all that a step launches; the step itself where there is no GPU."""
    if not torch.cuda.is_available():
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def both_passes(case: Case) -> None:
    """Forward and backward from a fresh start."""
    case.forward()
    case.backward()


def case_of(name: str, settings: Settings, compiles: bool = False) -> Case:
    """ResNet-50 (one block a stage if quick) with a variant in CE's places, its statistics settled."""
    blocks = (1, 1, 1, 1) if settings.quick else BLOCKS
    backbone = resnet50(VARIANTS[name], stem=True, stages=(True, True, True, False), blocks=blocks)
    if compiles:
        backbone = torch.compile(backbone, backend="inductor" if settings.device == "cuda" else "eager")
    case = backbone_case(backbone, settings)
    settle(case.module, case.run)
    return case


def run(settings: Settings) -> dict:
    """Measure and return all numbers."""
    torch.backends.cudnn.benchmark = True
    clock, of_calls, of_graphs, of_compiler = Clock(torch.device(settings.device)), {}, {}, {}
    for name in ("BN", "CE"):
        of_calls[name] = partial(training_step, case_of(name, settings), clock)
        replay = captured(partial(both_passes, case_of(name, settings)))
        of_graphs[f"{name}, CUDA graph"] = partial(clock.time, {"step": replay})
        of_compiler[f"{name}, torch.compile"] = partial(training_step, case_of(name, settings, compiles=True), clock)
    ways = of_calls | of_graphs | of_compiler
    times = take_turns(ways, settings.warmup, settings.rounds, records.progress("steps"))
    return dict(notes=[], networks={"resnet50-torch": summarise(times, "BN")})


BENCHMARK = records.Benchmark("steps", "What launches a training step of ResNet-50", NOTES, network.sections)


def main(arguments: Sequence[str]) -> int:
    """Parse the arguments, measure and write; bad input ends with one line and status 2."""
    rounds = dict(cpu=dict(warmup=1, rounds=6), cuda=dict(warmup=5, rounds=20))
    return front.run(BENCHMARK, front.make_parser(__doc__), arguments, rounds, lambda settings, args: run(settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
