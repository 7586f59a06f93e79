"""Measure inference in several runtimes: python -m tools.evidence.benchmark.latency --out DIR.

Whole classifiers of configs/imagenet, from a normalised picture of 224×224 to logits, on the CPU: ResNet-50 with BN,
with squeeze and excitation and with CE, MobileNetV2 with BN and with CE, one picture and eight at a time. All networks
and runtimes of one kind and batch take turns in one run:

eager          PyTorch, call by call
torch.compile  needs a C++ compiler
onnxruntime    the ONNX file that tools/export.py would write of it

CE is there in plain PyTorch calls, on its compiled backend, and folded into standard operators (ce_mm.layers.fold), as
exporters see it. Needs mmpretrain; for onnxruntime, pip install "ce_mm[export]".
"""
import argparse
import gc
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ce_mm.compat.requirements import require
from ce_mm.layers import fold
from tools.evidence.benchmark import backends, front, records
from tools.evidence.benchmark.measure import Clock, settle, summarise, take_turns
from tools.evidence.benchmark.settings import Settings

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "imagenet"
NETWORKS = {
    "resnet50": {
        "BN": CONFIGS / "resnet50_8xb32_in1k.py",
        "BN+SE": CONFIGS / "seresnet50_8xb32_in1k.py",
        "CE": CONFIGS / "ce-resnet50_8xb32_in1k.py",
    },
    "mobilenetv2": {"BN": CONFIGS / "mobilenet-v2_8xb32_in1k.py", "CE": CONFIGS / "ce-mobilenet-v2_8xb32_in1k.py"},
}
RUNTIMES = ("eager", "torch.compile", "onnxruntime")
#: CE as standard operators, which no backend of ours runs.
FOLDED = "CE folded"
BATCHES = (1, 8)
#: The largest relative difference between runtimes; they compute the same network.
TOLERANCE = 1e-3
NOTES = (
    "In a cell: the median time over the rounds; the median, over the rounds, of the time over that of the network "
    "with BN in the same runtime and round, with its quartiles; and the same over the same network in eager PyTorch. "
    f"*{FOLDED}*: CE as standard operators. The ONNX file has batch norms folded into convolutions; eager PyTorch "
    "computes them.",
    backends.NOTE,
    "Times are of the whole call, the input in memory, without the time to compile or to load.",
)


class Logits(nn.Module):
    """A classifier from normalised pictures to its logits, as a tuple of one tensor."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """From (N, 3, H, W) to (N, classes)."""
        return (self.classifier(x, mode="tensor"),)


def build(config: Path) -> Logits:
    """The classifier of a config in eval mode, with random weights and the statistics of random pictures."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope("mmpretrain"):
        network = MODELS.build(Config.fromfile(config).model)
    settle(network, lambda: network(torch.randn(8, 3, 224, 224), mode="tensor"))
    network.eval()
    return Logits(network).requires_grad_(False)


def runtimes(network: Logits, chosen: Sequence[str]) -> Iterator[tuple[str, Callable[[Tensor], object]]]:
    """The network in each of the runtimes chosen.

    Raises:
        ImportError: of onnxruntime, where its packages are missing.
    """
    for name in chosen:
        if name == "onnxruntime":
            yield name, _in_onnxruntime(network)
        else:
            yield name, torch.compile(network, dynamic=False) if name == "torch.compile" else network


def _in_onnxruntime(network: Logits) -> Callable[[Tensor], tuple[Tensor, ...]]:
    from ce_mm.export.formats import FORMATS
    from ce_mm.export.runtimes import load_onnx

    file_format = FORMATS["onnx"]
    file_format.require("onnx")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        with torch.no_grad():
            file_format.write(network, torch.zeros(2, 3, 64, 96), ["logits"], {}, path)
        return load_onnx(str(path))


def measure_kind(
    configs: Mapping[str, Path], batches: Sequence[int], chosen: Sequence[str], settings: Settings, notes: list[str]
) -> dict:
    """Measure one kind of network, all its variants in all runtimes.

    Args:
        configs: variant -> config file; the first is what the others are compared with.
        batches: how many pictures at a time.
        chosen: names of :data:`RUNTIMES`.
        settings: of the run.
        notes: a line for each runtime that is left out is added here.

    Returns:
        batch -> variant -> runtime -> ``over_eager`` and ``over_bn`` as :func:`~measure.summarise` gives them (None
        where BN was left out), and ``difference``, of the logits to those of eager PyTorch, with CE in plain calls.
    """
    side, results, networks, runners = (64 if settings.quick else 224), {}, {}, {}
    for variant, config in configs.items():
        records.say(f"building {config.stem} in {', '.join(chosen)}")
        networks[variant] = build(config)
        if variant == "CE":
            networks[FOLDED] = fold(networks[variant])
    for variant, network in backends.on_each(networks, settings).items():
        exported = variant not in (backends.PLAIN, backends.COMPILED)
        for runtime, run in runtimes(network, [name for name in chosen if exported or name != "onnxruntime"]):
            runners[variant, runtime] = run
    for batch in batches:
        pictures = settings.random_map(batch, 3, side, side)
        tried = {key: _try(key, runners, pictures, notes) for key in list(runners)}
        clock = Clock(torch.device("cpu"))
        steps = {key: partial(clock.time, {"eval": partial(run, pictures)}) for key, run in runners.items()}
        with torch.no_grad():
            times = take_turns(steps, settings.warmup, settings.rounds, records.progress(f"batch {batch}"))
        results[str(batch)] = _compare(times, tried, next(iter(configs)))
    return results


def _try(key: tuple[str, str], runners: dict, pictures: Tensor, notes: list[str]) -> float | None:
    """Run for the first time, which compiles; the difference to eager PyTorch. What fails is left out."""
    from ce_mm.export.check import relative_difference
    from ce_mm.export.runtimes import first_line

    records.say(f"first run of {' in '.join(key)}, {len(pictures)} at a time")
    reference = backends.PLAIN if key[0] in (backends.COMPILED, FOLDED) else key[0]
    expected = _logits((reference, "eager"), runners, pictures)
    try:
        logits = _logits(key, runners, pictures)
    except Exception as error:  # a compiler that is not there, or cannot
        notes.append(f"{' in '.join(key)} is left out: {type(error).__name__}: {first_line(error)}")
        records.say(notes[-1])
        del runners[key]
        return None
    difference = relative_difference(logits, expected)
    if not difference <= TOLERANCE:
        raise ValueError(f"{' in '.join(key)} differs from eager PyTorch by {difference:.1e}, more than {TOLERANCE:g}")
    return difference


def _logits(key: tuple[str, str], runners: dict, pictures: Tensor) -> Tensor:
    with torch.no_grad(), backends.turn(key):
        return runners[key](pictures)[0]


def _compare(
    times: Mapping[tuple[str, str], Mapping[str, Sequence[float]]],
    differences: Mapping[tuple[str, str], float | None],
    reference: str,
) -> dict[str, dict[str, dict]]:
    results: dict[str, dict[str, dict]] = {}
    for (variant, runtime), series in times.items():
        beside = reference, runtime
        row = dict(over_eager=_ratio(series, times[variant, "eager"]), difference=differences[variant, runtime])
        row["over_bn"] = _ratio(series, times[beside]) if beside in times else None
        results.setdefault(variant, {})[runtime] = row
    return results


def _ratio(series: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return summarise({"this": series, "other": other}, "other")["this"]["eval"]


def run(settings: Settings, networks: Sequence[str], chosen: Sequence[str], batches: Sequence[int]) -> dict:
    """Measure and return all numbers.

    Raises:
        ValueError: a setting that is not for inference on a CPU in float32, or a package is missing.
    """
    front.check_plain(settings)
    try:
        require("mmengine", "mmpretrain")
        if "onnxruntime" in chosen:
            import onnxruntime

            packages = f"onnxruntime {onnxruntime.__version__}, as many threads as PyTorch"
        else:
            packages = "without onnxruntime"
    except ImportError as error:
        raise ValueError(f"{error} (pip install \"ce_mm[onedl,export]\")") from error
    notes, results = [packages, *backends.notes(settings)], {}
    for name in networks:
        torch.compiler.reset()
        results[name] = measure_kind(NETWORKS[name], batches, ["eager", *chosen], settings, notes)
        gc.collect()
    return dict(
        settings=asdict(settings) | dict(batch=" and ".join(map(str, batches))), notes=notes, networks=results
    )


def sections(record: dict) -> records.Sections:
    """A section for each network and batch, with a row for each variant and runtime."""
    found: records.Sections = {}
    for network, by_batch in record["networks"].items():
        for batch, variants in by_batch.items():
            rows = found[f"{network}, batch {batch}"] = {}
            for variant, runtimes in variants.items():
                rows |= {(variant, runtime): _cell(row) for runtime, row in runtimes.items()}
    return found


def _cell(row: dict) -> str:
    ratios = [records.ratio_text(row[key]) if row[key] else "–" for key in ("over_bn", "over_eager")]
    return ", ".join([f"{row['over_eager']['ms']:.4g} ms", *ratios])


BENCHMARK = records.Benchmark("latency", "Inference in several runtimes", NOTES, sections)


def main(arguments: Sequence[str]) -> int:
    """Parse the arguments, measure and write; bad input ends with one line and status 2."""
    parser = front.make_parser(__doc__)
    parser.set_defaults(device="cpu")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="default: all")
    parser.add_argument(
        "--runtimes", nargs="+", choices=RUNTIMES[1:], default=list(RUNTIMES[1:]), help="beside eager (default: all)"
    )
    rounds = {device: dict(warmup=3, rounds=15) for device in ("cpu", "cuda")}

    def measure(settings: Settings, args: argparse.Namespace) -> dict:
        batches = (settings.batch,) if args.batch or args.quick else BATCHES
        return run(settings, args.networks, args.runtimes, batches)

    return front.run(BENCHMARK, parser, arguments, rounds, measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
