"""The slices: the commands of each, on a GPU or, at tiny sizes, in a rehearsal without one."""
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Command = Sequence[str]

#: What the tests need beside torch, and NumPy.
FOR_TESTS = dict(pytest="pytest", xdist="pytest-xdist", hypothesis="hypothesis")
SEEDS = 3
#: Minutes after which no epoch begins: what is measured of a training follows.
MINUTES = "8"


@dataclass(frozen=True)
class Slice:
    """One of them."""

    about: str
    commands: Callable[[Path, bool], list[Command]]  #: from the folder of results, and whether it is a rehearsal
    is_done: Callable[[Path], bool] = lambda out: True  #: once all commands have ended well
    interpreted: bool = False  #: whether a rehearsal is in Triton's interpreter, which is too slow for a network


def module(name: str, *arguments: object) -> Command:
    """``python -m`` of a piece of the evidence."""
    return [sys.executable, "-m", f"tools.evidence.{name}", *map(str, arguments)]


def tests(out: Path, rehearses: bool) -> list[Command]:
    """pytest is fetched where it is missing; without a network, lay it beside Python's packages before."""
    missing = [package for name, package in FOR_TESTS.items() if importlib.util.find_spec(name) is None]
    fetch = [[sys.executable, "-m", "pip", "install", *missing]] if missing and not rehearses else []
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if rehearses:
        return [[*run, "tests/ops/backends/test_triton_coefficients.py", "-k", "single_position"]]
    return [*fetch, [*run, "-n", str(os.cpu_count()), "tests/ops", "tests/layers/test_nothing_is_asked_of_a_gpu.py"]]


def checks(out: Path, rehearses: bool) -> list[Command]:
    """What a CPU cannot show."""
    return [module("gpu.checks", "--out", out, *["--quick"] * rehearses)]


def memcheck(out: Path, rehearses: bool) -> list[Command]:
    """Without NVIDIA's tool first, since what that has compiled is kept; then with it, where it is there."""
    sanitizer = shutil.which("compute-sanitizer")
    launches = module("gpu.kernels")
    if sanitizer is None or rehearses:
        return [launches]
    return [launches, [sanitizer, "--tool", "memcheck", "--error-exitcode", "3", *launches]]


def layers(dtype: str, layout: str) -> Callable[[Path, bool], list[Command]]:
    """Layers and passes, with what torch.compile makes of BN and CE."""

    def commands(out: Path, rehearses: bool) -> list[Command]:
        size = ["--quick", "--torch-compile", "aot_eager", "--parts", "layers"] if rehearses else [
            "--device", "cuda", "--torch-compile", "inductor", "--parts", "layers", "passes", "--rounds", "20",
        ]  # fmt: skip
        return [module("benchmark.op", "--out", out / f"layers-{dtype}", "--dtype", dtype, "--layout", layout, *size)]

    return commands


def steps(out: Path, rehearses: bool) -> list[Command]:
    """Each batch is a record of its own, and so has a folder of its own."""
    batches = {batch: ["--quick"] if rehearses else ["--batch", batch, "--device", "cuda"] for batch in (64, 32)}
    return [module("benchmark.steps", "--out", out / f"steps-{batch}", *size) for batch, size in batches.items()]


def network(batch: int) -> Callable[[Path, bool], list[Command]]:
    """ResNet-50 with all variants."""

    def commands(out: Path, rehearses: bool) -> list[Command]:
        size = ["--quick"] if rehearses else ["--batch", batch, "--device", "cuda"]
        return [module("benchmark.network", "--torch-only", "--out", out / f"network-{batch}", *size)]

    return commands


def cifar10(name: str, variant: str) -> Slice:
    """One variant of the study, by the paper's recipe, as far as the time goes."""

    def commands(out: Path, rehearses: bool) -> list[Command]:
        data = os.environ.get("CIFAR10", "data/cifar10_jpeg.npz")
        how = ["--minutes", "0"] if rehearses else ["--minutes", MINUTES, "--recipe", "paper", "--device", "cuda"]
        return [module("cifar10", data, "--out", out / name, "--variants", variant, "--seeds", SEEDS, *how)]

    def is_done(out: Path) -> bool:
        return len(list((out / name).glob("*/measured.json"))) == SEEDS

    return Slice(f"{variant} on CIFAR-10, 160 epochs, {SEEDS} seeds; the file's name is in CIFAR10", commands, is_done)


SLICES = {
    "tests": Slice("the tests of the operators, on the GPU", tests, interpreted=True),
    "checks": Slice("large maps, groups of 64, CUDA graphs, no waiting", checks, interpreted=True),
    "memcheck": Slice("each kernel, under compute-sanitizer where that is there", memcheck, interpreted=True),
    "layers-bfloat16": Slice("layers of ResNet-50, bfloat16, channels-last", layers("bfloat16", "channels-last")),
    "layers-float32": Slice("layers of ResNet-50, float32, contiguous", layers("float32", "contiguous")),
    "steps": Slice("a step of ResNet-50 under AMP: eager, as a CUDA graph, by torch.compile", steps),
    "network-64": Slice("ResNet-50 with all variants, 64 pictures", network(64)),
    "network-32": Slice("ResNet-50 with all variants, 32 pictures", network(32)),
    "cifar10-bn": cifar10("cifar10-bn", "BN+ReLU"),
    "cifar10-ce": cifar10("cifar10-ce", "BN+CE+ReLU"),
}
