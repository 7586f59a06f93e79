"""Measure CE as a layer: python -m tools.evidence.benchmark.op --out DIR.

Needs torch alone. Three parts, each with all that it compares taking turns in one run:

layers   BN, BN+SE, IterNorm, CE written literally, and our CE, plain and compiled, each with its ReLU, on the maps of
         ResNet-50
scaling  the training step against N, C, H·W and g, with the exponents of the fitted power laws
passes   the four passes over a map that CE is made of: bytes that they must move, and their speed beside a copy's
"""
import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from ce_mm import ops
from ce_mm.ops.joint import input_gradient, output_sums
from tools.evidence.benchmark import backends, front, records
from tools.evidence.benchmark.cases import layer_case
from tools.evidence.benchmark.layers import VARIANTS, BatchNormReLU, FusedCE
from tools.evidence.benchmark.measure import Clock, exponent, measure_cases, summarise, take_turns, training_step
from tools.evidence.benchmark.settings import DTYPES, Settings

PARTS = ("layers", "scaling", "passes")

#: Channels and side of the maps at the end of the blocks of ResNet-50's stages 1 to 3, and at its stem.
LAYERS = ((64, 112), (256, 56), (512, 28), (1024, 14))

#: Maps that our passes must read or write, each with a ReLU: x; x and y; dy, y and x; these and dx.
PASS_MAPS = dict(moments=1, group_affine=2, output_sums=3, input_gradient=4)

NOTES = (
    "Every layer ends with its ReLU. A ratio is the median, over the rounds, of a layer's time over BN's in the same "
    "round, with its quartiles; the time is the median. *saved*: bytes kept for the backward pass, each storage once, "
    "without parameters. *peak*: the most that is allocated at one time in a training step, through PyTorch, beside x, "
    "dy and the parameters. *b* is the exponent of the training step's time, as size^b. A pass has its time, the bytes "
    "that it must move in a second, and these over those of a copy in the same run.",
    backends.NOTE,
    "On a GPU the times are those of its work alone; *wall* is one step with all its launches, "
    "*host* what Python takes to launch them.",
)


def run_layers(settings: Settings, clock: Clock, compiler: str | None) -> dict[str, dict]:
    """Every variant on every map of ResNet-50; BN and CE under torch.compile too, if a backend of its is named."""
    results, variants = {}, dict(VARIANTS)
    if compiler is not None:
        variants |= {f"{name}, torch.compile": partial(_joined, VARIANTS[name], compiler) for name in ("BN", "CE")}
    for channels, side in ((32, 8), (64, 4)) if settings.quick else LAYERS:
        shape = (settings.batch, channels, side, side)
        torch.compiler.reset()  # or, of one class, so many shapes and modes that it would give up
        cases = {name: layer_case(variant(channels), settings, shape) for name, variant in variants.items()}
        cases, progress = backends.on_each(cases, settings), records.progress(f"layer {shape}")
        results[shape_text(shape)] = measure_cases(cases, clock, settings.warmup, settings.rounds, progress)
    return results


def _joined(variant: type[nn.Module], compiler: str, channels: int) -> nn.Module:
    return torch.compile(variant(channels), backend=compiler)


def sweeps(settings: Settings) -> dict[str, list[tuple[int, tuple[int, int, int, int], int]]]:
    """For each of N, C, H·W and g: five sizes over a factor of 16, each with the map's shape and g."""
    n, c, side, g, sides = settings.batch, 256, 56, 16, (28, 40, 56, 80, 112)
    steps = range(5)
    if settings.quick:
        n, c, side, sides, steps = 4, 64, 4, (2, 4, 8), range(3)
    numbers = [max(n // 4, 1) * 2**k for k in steps]
    channels = [c // 4 * 2**k for k in steps]
    return {
        "N": [(size, (size, c, side, side), g) for size in numbers],
        "C": [(size, (n, size, side, side), g) for size in channels],
        "H·W": [(size * size, (n, c, size, size), g) for size in sides],
        "g": [(4 * 2**k, (n, c, side, side), 4 * 2**k) for k in steps],
    }


def run_scaling(settings: Settings, clock: Clock) -> dict[str, dict]:
    """Training steps of BN and of CE along each of the sweeps, with the exponents of the fitted power laws."""
    results = {}
    for axis, points in sweeps(settings).items():
        steps = {}
        for size, shape, group_size in points:
            layers = dict(BN=BatchNormReLU(shape[1]), CE=FusedCE(shape[1], group_size=group_size))
            cases = {name: layer_case(layer, settings, shape) for name, layer in layers.items()}
            for name, case in backends.on_each(cases, settings).items():
                steps[name, size] = partial(training_step, case, clock)
        times = take_turns(steps, settings.warmup, settings.rounds, records.progress(f"scaling in {axis}"))
        sizes, shapes = [size for size, _, _ in points], [shape for _, shape, _ in points]
        results[axis] = dict(sizes=sizes, shapes=shapes, variants={})
        names = dict.fromkeys(name for name, _ in steps)
        found = [summarise({name: times[name, size] for name in names}, "BN") for size in sizes]
        for name in names:
            ms, ratios = ([at_size[name]["step"][kind] for at_size in found] for kind in ("ms", "ratio"))
            results[axis]["variants"][name] = dict(ms=ms, ratios=ratios, exponent=exponent(sizes, ms))
    return results


def run_passes(settings: Settings, clock: Clock, copy_rate: float) -> dict[str, dict]:
    """The four passes of every backend on every map of ResNet-50."""
    results = {}
    for channels, side in ((32, 8),) if settings.quick else LAYERS:
        shape = (settings.batch, channels, side, side)
        each = backends.on_each({"CE": passes(settings, shape)}, settings)
        steps = {
            (variant, name): partial(clock.time, {"time": run})
            for variant, functions in each.items()
            for name, run in functions.items()
        }
        times = take_turns(steps, settings.warmup, settings.rounds, records.progress(f"passes {shape}"))
        results[shape_text(shape)] = found = {name: {} for name in PASS_MAPS}
        for (variant, name), series in times.items():
            milliseconds = statistics.median(series["time"])
            size = PASS_MAPS[name] * math.prod(shape) * DTYPES[settings.dtype].itemsize
            rate = size / (1e-3 * milliseconds)
            found[name][variant] = dict(bytes=size, ms=milliseconds, bytes_per_second=rate, of_copy=rate / copy_rate)
    return results


def passes(settings: Settings, shape: Sequence[int], g: int = 16) -> dict:
    """The four passes as functions without arguments, as the layer calls them with a ReLU and without a residual."""
    n, c, h, w = shape
    x, y, dy = (settings.random_map(*shape) for _ in range(3))

    def small(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=settings.device)

    matrix, vector, shift = small(1, c // g, g, g), small(n, c), torch.zeros(c, device=settings.device)
    return dict(
        moments=lambda: ops.moments(x, group_size=g, shift=shift),
        group_affine=lambda: ops.group_affine(x, shift, matrix, vector, vector, rectifier=ops.RELU),
        output_sums=lambda: output_sums(dy, x, shift, y, ops.RELU, False, g, True, False),
        input_gradient=lambda: input_gradient(dy, y, x, shift, matrix, vector, matrix, vector, vector),
    )


def measure_copy(settings: Settings, clock: Clock) -> float:
    """Bytes per second, read and written, of a copy that is larger than any cache."""
    mebibytes = 1 if settings.quick else 1024 if settings.device == "cuda" else 128
    source = torch.randn(mebibytes * 2**18, device=settings.device)
    target = torch.empty_like(source)
    step = {"copy": lambda: clock.time({"time": lambda: target.copy_(source)})}
    times = take_turns(step, settings.warmup, settings.rounds, records.progress("copy"))
    return 2 * source.nbytes / (1e-3 * statistics.median(times["copy"]["time"]))


def shape_text(shape: Sequence[int]) -> str:
    """(N, C, H, W) as N×C×H×W."""
    return "×".join(map(str, shape))


def sections(record: dict) -> records.Sections:
    """A section for each map, one for scaling and one for the passes."""
    found = {shape: records.figure_rows(variants) for shape, variants in record.get("layers", {}).items()}
    if "scaling" in record:
        rows = found["Scaling of the training step"] = {}
        for axis, series in record["scaling"].items():
            for name, variant in series["variants"].items():
                rows[axis, f"b of {name}"] = f"{variant['exponent']:.2f}"
            for number, size in enumerate(series["sizes"]):
                for name, variant in list(series["variants"].items())[1:]:
                    rows[axis, f"{name} / BN at {size}"] = f"{variant['ratios'][number]:.2f}"
    if "passes" in record:
        rows = found["Passes"] = {("a copy", "", ""): f"{1e-9 * record['copy_bytes_per_second']:.1f} GB/s"}
        for shape, timed in record["passes"].items():
            for name, variants in timed.items():
                rows |= {(shape, name, variant): _speed(figures) for variant, figures in variants.items()}
    return found


def _speed(figures: dict[str, float]) -> str:
    rate = 1e-9 * figures["bytes_per_second"]
    return f"{figures['ms']:.3g} ms, {rate:.1f} GB/s, {figures['of_copy']:.2f} of copy"


BENCHMARK = records.Benchmark("op", "CE as a layer", NOTES, sections)


def run(settings: Settings, parts: Sequence[str], compiler: str | None = None) -> dict:
    """Measure and return all numbers; with a compiler as :func:`run_layers`."""
    clock = Clock(torch.device(settings.device))
    copy_rate = measure_copy(settings, clock)
    numbers = dict(notes=backends.notes(settings), copy_bytes_per_second=copy_rate)
    if "layers" in parts:
        numbers["layers"] = run_layers(settings, clock, compiler)
    if "scaling" in parts:
        numbers["scaling"] = run_scaling(settings, clock)
    if "passes" in parts:
        numbers["passes"] = run_passes(settings, clock, copy_rate)
    return numbers


def main(arguments: Sequence[str]) -> int:
    """Parse the arguments, measure and write; bad input ends with one line and status 2."""
    parser = front.make_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all three")
    parser.add_argument("--torch-compile", metavar="BACKEND", help="BN and CE by torch.compile too, as with inductor")
    rounds = dict(cpu=dict(warmup=2, rounds=12), cuda=dict(warmup=5, rounds=30))

    def measure(settings: Settings, args: argparse.Namespace) -> dict:
        return run(settings, args.parts, args.torch_compile)

    return front.run(BENCHMARK, parser, arguments, rounds, measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
