"""Measure CE as a layer: python -m tools.evidence.benchmark.op --out DIR.

Needs torch alone. Three parts, each with all that it compares taking turns in one run:

layers   BN, BN+SE, IterNorm, CE written literally, and our CE, each with its ReLU, on the maps of ResNet-50
scaling  the training step against N, C, H·W and g, with the exponents of the fitted power laws
passes   the four passes over a map that CE is made of: bytes that they must move, and their speed beside a copy's
"""
import math
import statistics
import sys
from collections.abc import Sequence

import torch

from ce_mm import ops
from ce_mm.ops.joint import input_gradient, output_sums
from tools.evidence import markdown
from tools.evidence.benchmark import front, report
from tools.evidence.benchmark.cases import layer_case
from tools.evidence.benchmark.fused_ce import FusedCE
from tools.evidence.benchmark.layers import VARIANTS, BatchNormReLU
from tools.evidence.benchmark.measure import Clock, exponent, measure_cases, summarise, take_turns, training_step
from tools.evidence.benchmark.settings import DTYPES, Settings

PARTS = ("layers", "scaling", "passes")

#: Channels and side of the maps at the end of the blocks of ResNet-50's stages 1 to 3, and at its stem.
LAYERS = ((64, 112), (256, 56), (512, 28), (1024, 14))

#: Maps that a norm with statistics of its whole input must read or write: x twice and y; dy and x twice, and dx.
MAPS = dict(forward=3, backward=5)

#: The same for our passes, each with a ReLU: x; x and y; dy, y and x; these and dx.
PASS_MAPS = dict(moments=1, group_affine=2, output_sums=3, input_gradient=4)

NOTES = (
    "Every layer ends with its ReLU. A ratio is the median, over the rounds, of a layer's time over BN's in the same "
    "round, with its quartiles. *saved*: bytes kept for the backward pass, each storage once, without parameters. "
    "*peak*: the most that is allocated at one time in a training step, through PyTorch, beside x, dy and the "
    "parameters. *of copy*: bytes per second, counting three maps forward and five backward, over those of a copy in "
    "the same run.",
    "On a GPU the times are those of its work alone; *wall* is one step with all its launches.",
)


def run_layers(settings: Settings, clock: Clock, copy_rate: float) -> list[dict]:
    """Every variant on every map of ResNet-50."""
    results = []
    for channels, side in ((32, 8), (64, 4)) if settings.quick else LAYERS:
        shape = (settings.batch, channels, side, side)
        cases = {name: layer_case(variant(channels), settings, shape) for name, variant in VARIANTS.items()}
        progress = report.progress(f"layer {shape}")
        variants = measure_cases(cases, clock, settings.warmup, settings.rounds, progress)
        size = map_bytes(settings, shape)
        for numbers in variants.values():
            for stage, maps in MAPS.items():
                rate = maps * size / (1e-3 * numbers[stage]["ms"])
                numbers[stage] |= dict(bytes_per_second=rate, of_copy=rate / copy_rate)
        results.append(dict(shape=shape, map_bytes=size, variants=variants))
    return results


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
    """Training steps of CE and of BN along each of the sweeps, with the exponents of the fitted power laws."""
    results = {}
    for axis, points in sweeps(settings).items():
        steps = {}
        for size, shape, group_size in points:
            for name, layer in (("BN", BatchNormReLU(shape[1])), ("CE", FusedCE(shape[1], group_size=group_size))):
                case = layer_case(layer, settings, shape)
                steps[name, size] = lambda case=case: training_step(case, clock)
        times = take_turns(steps, settings.warmup, settings.rounds, report.progress(f"scaling in {axis}"))
        sizes = [size for size, _, _ in points]
        pairs = [summarise({name: times[name, size] for name in ("BN", "CE")}, "BN") for size in sizes]
        shapes, ratios = [shape for _, shape, _ in points], [pair["CE"]["step"]["ratio"] for pair in pairs]
        results[axis] = dict(sizes=sizes, shapes=shapes, ratios=ratios)
        for name in ("BN", "CE"):
            series = [pair[name]["step"]["ms"] for pair in pairs]
            results[axis][name] = dict(ms=series, exponent=exponent(sizes, series))
    return results


def run_passes(settings: Settings, clock: Clock, copy_rate: float) -> list[dict]:
    """The four passes on every map of ResNet-50."""
    results = []
    for channels, side in ((32, 8),) if settings.quick else LAYERS:
        shape = (settings.batch, channels, side, side)
        steps = {name: lambda run=run: clock.time({"time": run}) for name, run in passes(settings, shape).items()}
        times = take_turns(steps, settings.warmup, settings.rounds, report.progress(f"passes {shape}"))
        for name, maps in PASS_MAPS.items():
            milliseconds = statistics.median(times[name]["time"])
            size = maps * map_bytes(settings, shape)
            rate = size / (1e-3 * milliseconds)
            results.append(
                {"shape": shape, "pass": name, "maps": maps, "bytes": size, "ms": milliseconds}
                | {"bytes_per_second": rate, "of_copy": rate / copy_rate}
            )
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
        group_affine=lambda: ops.group_affine(x, shift, matrix, vector, vector, relu=True),
        output_sums=lambda: output_sums(dy, x, shift, y, None, False, g, True, False),
        input_gradient=lambda: input_gradient(dy, y, x, shift, matrix, vector, vector, vector, matrix),
    )


def measure_copy(settings: Settings, clock: Clock) -> float:
    """Bytes per second, read and written, of a copy that is larger than any cache."""
    mebibytes = 1 if settings.quick else 1024 if settings.device == "cuda" else 128
    source = torch.randn(mebibytes * 2**18, device=settings.device)
    target = torch.empty_like(source)
    step = {"copy": lambda: clock.time({"time": lambda: target.copy_(source)})}
    times = take_turns(step, settings.warmup, settings.rounds, report.progress("copy"))
    return 2 * source.nbytes / (1e-3 * statistics.median(times["copy"]["time"]))


def map_bytes(settings: Settings, shape: Sequence[int]) -> int:
    """The bytes of a map."""
    return math.prod(shape) * DTYPES[settings.dtype].itemsize


def table(numbers: dict) -> str:
    """The page of Markdown."""
    sections = [report.heading("CE as a layer", numbers)]
    for result in numbers.get("layers", ()):
        sections.append(f"## {shape_text(result['shape'])}\n\n{layer_table(result['variants'])}")
    if "scaling" in numbers:
        sections.append(f"## Scaling of the training step\n\n{scaling_table(numbers['scaling'])}")
    if "passes" in numbers:
        copy = f"A copy moves {1e-9 * numbers['copy_bytes_per_second']:.1f} GB/s."
        sections.append(f"## Passes\n\n{copy}\n\n{pass_table(numbers['passes'])}")
    return "\n\n".join(sections)


def layer_table(variants: dict[str, dict]) -> str:
    """Ratios first, then the times behind them."""
    columns = ["", "step", "forward", "backward", "eval", "saved", "peak", "forward of copy", "backward of copy"]
    times = [stage for stage in ("forward", "backward", "eval", "wall") if stage in variants["BN"]]
    rows = []
    for name, numbers in variants.items():
        row = [name, *(report.ratio_text(numbers[stage]) for stage in ("step", "forward", "backward", "eval"))]
        row += [f"{numbers[kind]['ratio']:.2f}" for kind in ("saved", "peak")]
        row += [f"{numbers[stage]['of_copy']:.2f}" for stage in MAPS]
        rows.append([*row, *(f"{numbers[stage]['ms']:.3g}" for stage in times)])
    return markdown.table([*columns, *(f"{stage}, ms" for stage in times)], rows)


def scaling_table(scaling: dict[str, dict]) -> str:
    """Exponents, and the ratio of CE to BN at every size."""
    rows = []
    for axis, series in scaling.items():
        pairs = zip(series["sizes"], series["ratios"], strict=True)
        points = ", ".join(f"{size}: {ratio:.2f}" for size, ratio in pairs)
        rows.append([axis, *(f"{series[name]['exponent']:.2f}" for name in ("CE", "BN")), points])
    return markdown.table(["time ∝ size^b", "b of CE", "b of BN", "CE / BN at each size"], rows)


def pass_table(results: list[dict]) -> str:
    """Bytes, speed, and the share of a copy's speed."""
    columns = ["", "pass", "of copy", "GB/s", "maps", "MB", "ms"]
    rows = []
    for r in results:
        row = [shape_text(r["shape"]), r["pass"], f"{r['of_copy']:.2f}", f"{1e-9 * r['bytes_per_second']:.1f}"]
        rows.append([*row, str(r["maps"]), f"{1e-6 * r['bytes']:.1f}", f"{r['ms']:.3g}"])
    return markdown.table(columns, rows)


def shape_text(shape: Sequence[int]) -> str:
    """(N, C, H, W) as N×C×H×W."""
    return "×".join(map(str, shape))


def run(settings: Settings, parts: Sequence[str]) -> dict:
    """Measure and return all numbers."""
    clock = Clock(torch.device(settings.device))
    copy_rate = measure_copy(settings, clock)
    numbers = dict(notes=NOTES, copy_bytes_per_second=copy_rate)
    if "layers" in parts:
        numbers["layers"] = run_layers(settings, clock, copy_rate)
    if "scaling" in parts:
        numbers["scaling"] = run_scaling(settings, clock)
    if "passes" in parts:
        numbers["passes"] = run_passes(settings, clock, copy_rate)
    return numbers


def main(arguments: Sequence[str]) -> int:
    """Parse the arguments, measure and write; bad input ends with one line and status 2."""
    parser = front.make_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all three")
    rounds = dict(cpu=dict(warmup=2, rounds=12), cuda=dict(warmup=5, rounds=30))
    return front.run("op", parser, arguments, rounds, lambda settings, args: run(settings, args.parts), table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
