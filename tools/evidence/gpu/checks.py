"""What a CPU cannot show: python -m tools.evidence.gpu.checks --out DIR.

Groups of 64; maps of more than 2^31 elements; a training step as a CUDA graph; that no step waits for the GPU; a loss's
scaler that meets infinity. Errors are the largest as a part of the largest value, beside plain PyTorch calls. Writes
checks.json and checks.md; the status is 1 if a check fails. Without a GPU, what can be is rehearsed on the CPU.
"""
import argparse
import copy
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ce_mm.layers import CENorm
from tools.evidence import pages
from tools.evidence.benchmark import backends, records
from tools.evidence.benchmark.settings import LAYOUTS
from tools.evidence.benchmark.steps import WARM_UP, captured

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: What rounding may make of a result; float16 maps are multiplied in tf32, which is as fine.
LIMITS = {torch.float32: 1e-4, torch.float16: 2**-8, torch.bfloat16: 2**-6}


class Found(NamedTuple):
    """The outcome of a check."""

    error: float
    limit: float


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Results, gradients and averages of a training step, without a rectifier, which would be a step of its own."""
    for tensor in (x, *layer.parameters()):
        tensor.grad = None
    y = layer(x)
    y.backward(dy)
    gradients = {f"gradient of {name}": value.grad for name, value in layer.named_parameters()}
    return {"y": y.detach(), "dx": x.grad} | gradients | dict(layer.named_buffers())


def worst(mine: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """The largest error, where a value that is not finite is infinitely wrong."""
    errors = [
        ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30)).item()
        for a, b in zip(mine, theirs, strict=True)
    ]
    return max(error if math.isfinite(error) else math.inf for error in errors)


def plainly(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """The same step of a copy of the layer in plain calls."""
    with backends.turn(backends.PLAIN):
        return step(layer, x.detach().clone().requires_grad_(), dy)


def a_layer(channels: int, **arguments: object) -> CENorm:
    """A layer whose parameters are not where they start."""
    torch.manual_seed(0)
    layer = CENorm(channels, **arguments).to(DEVICE)
    with torch.no_grad():
        for value in layer.parameters():
            value += 0.2 * torch.rand_like(value)
    return layer


def a_map(*shape: int, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> Tensor:
    """Channels of a group are correlated, or decorrelation would be one."""
    x = torch.randn(*shape, device=DEVICE)
    x = x + x.roll(1, 1) + 0.5
    return x.to(dtype).contiguous(memory_format=LAYOUTS[layout])


def wide_groups(quick: bool, dtype: torch.dtype, layout: str) -> Found:
    """A training step with g = 64."""
    shape = (2, 64, 3, 5) if quick else (16, 256, 28, 28)
    layer, x = a_layer(shape[1], group_size=64), a_map(*shape, dtype=dtype, layout=layout)
    other, dy = copy.deepcopy(layer), a_map(*shape, dtype=dtype, layout=layout)
    mine, theirs = step(layer, x.clone().requires_grad_(), dy), plainly(other, x, dy)
    return Found(worst(mine.values(), theirs.values()), LIMITS[dtype])


def large_map(quick: bool, layout: str) -> Found:
    """A training step on a batch of a few samples over and over, whose statistics are those of the few."""
    shape, times = ((2, 32, 3, 5), 3) if quick else ((4, 64, 112, 112), 672)
    few, of_few = (a_map(*shape, dtype=torch.bfloat16, layout=layout) for _ in range(2))
    assert quick or few.numel() * times > 2**31
    layer = a_layer(shape[1])
    other = copy.deepcopy(layer)
    x, dy = (value.repeat(times, 1, 1, 1).contiguous(memory_format=LAYOUTS[layout]) for value in (few, of_few))
    mine, theirs = step(layer, x.requires_grad_(), dy), plainly(other, few, of_few)
    errors = []
    for part in (slice(0, shape[0]), slice(-shape[0], None)):
        errors.append(worst((mine[name][part] for name in ("y", "dx")), (theirs[name] for name in ("y", "dx"))))
    summed = [name for name in theirs if name.startswith("gradient")]
    errors.append(worst((mine[name] / times for name in summed), (theirs[name] for name in summed)))
    kept = ("bd.running_whitening", "ir.running_inv_std_scale", "norm.running_mean")
    errors.append(worst((mine[name] for name in kept), (theirs[name] for name in kept)))
    return Found(max(errors), LIMITS[torch.bfloat16])


def graph(quick: bool, **arguments: object) -> Found:
    """Launched again on new batches, a captured step does what the calls do; and a bad batch moves no average."""
    shape = (2, 32, 3, 5) if quick else (16, 64, 28, 28)
    layer = a_layer(shape[1], **arguments)
    other = copy.deepcopy(layer)
    x, dy, results = a_map(*shape).requires_grad_(), a_map(*shape), {}
    replay = captured(lambda: results.update(step(layer, x, dy)))
    for _ in range(WARM_UP if DEVICE == "cuda" else 0):
        step(other, x.detach().clone().requires_grad_(), dy)
    errors = []
    for _ in range(3):
        with torch.no_grad():
            x.copy_(a_map(*shape))
        replay()
        theirs = step(other, x.detach().clone().requires_grad_(), dy)
        errors.append(worst((results[name] for name in theirs), theirs.values()))
    before = [value.clone() for value in layer.buffers()]
    with torch.no_grad():
        x.fill_(math.nan)
    replay()
    errors.append(worst(layer.buffers(), before))
    errors.append(float(bool(layer.finite)))
    return Found(max(errors), 1e-5)


def waits(quick: bool, **arguments: object) -> Found:
    """PyTorch raises where the host would wait for the GPU, in a training step or in inference."""
    layer, x = a_layer(32, **arguments), a_map(4, 32, 6, 6).requires_grad_()
    dy = torch.ones_like(x)
    step(layer, x, dy)  # kernels are compiled and chosen
    layer.eval()(x)
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        step(layer.train(), x, dy)
        with torch.no_grad():
            layer.eval()(x)
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return Found(0.0, 0.0)


def scaler(quick: bool) -> Found:
    """After a batch with infinity the scale is halved, and weights and averages are what they were."""
    network = nn.Sequential(nn.Conv2d(3, 32, 3, bias=False), a_layer(32)).to(DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    scale = torch.amp.GradScaler(DEVICE, init_scale=2.0**8)
    kept: list[Tensor] = []
    for k, factor in enumerate((1.0, math.inf)):
        kept = [value.detach().clone() for value in network.state_dict().values()] if k else kept
        with torch.autocast(DEVICE, torch.float16) if DEVICE == "cuda" else nullcontext():
            loss = (network(factor * torch.randn(4, 3, 8, 8, device=DEVICE))).float().square().mean()
        optimizer.zero_grad()
        scale.scale(loss).backward()
        scale.step(optimizer)
        scale.update()
    errors = [worst(network.state_dict().values(), kept), abs(scale.get_scale() - 2.0**7)]
    return Found(max(errors), 0.0)


def checks(quick: bool) -> dict[str, Callable[[], Found]]:
    """All of them, by what is checked."""
    found: dict[str, Callable[[], Found]] = {}
    for layout in LAYOUTS:
        for dtype in LIMITS:
            name = f"groups of 64, {str(dtype).removeprefix('torch.')}, {layout}"
            found[name] = lambda dtype=dtype, layout=layout: wide_groups(quick, dtype, layout)
        found[f"more than 2^31 elements, {layout}"] = lambda layout=layout: large_map(quick, layout)
    kinds = {"BN": {}, "groups of 32": dict(group_size=32), "GN": dict(norm=dict(type="GN", num_groups=8))}
    for name, arguments in kinds.items():
        found[f"a step as a CUDA graph, {name}"] = lambda arguments=arguments: graph(quick, **arguments)
        found[f"nothing waits, {name}"] = lambda arguments=arguments: waits(quick, **arguments)
    found["a scaler that meets infinity"] = lambda: scaler(quick)
    return found


def main(arguments: Sequence[str]) -> int:
    """Run all, one after the other, and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of checks.json and checks.md")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    args = parser.parse_args(arguments)
    results = {}
    for name, check in checks(args.quick).items():
        try:
            found, text = check(), ""
        except Exception as error:  # the others still tell something
            found, text = Found(math.inf, 0.0), f"{type(error).__name__}: {error}".splitlines()[0]
        passed = found.error <= found.limit
        results[name] = dict(passed=passed, error=str(found.error), limit=found.limit, raised=text)
        records.say(f"{'passed' if passed else 'FAILED'}: {name} {found.error:.2g} {text}")
    machine = records.machine(DEVICE)
    rows = [[name, "yes" if each["passed"] else f"NO {each['raised']}", f"{float(each['error']):.1e}",
             f"{each['limit']:.1e}"] for name, each in results.items()]  # fmt: skip
    page = f"# Checks\n\n{machine['device']}, PyTorch {machine['torch']}, Triton {machine['triton']}.\n\n"
    page += pages.table(["", "passed", "error", "limit"], rows, words=(0, 1))
    pages.write(args.out, "checks", page, dict(machine=machine, checks=results))
    return 0 if all(each["passed"] for each in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
