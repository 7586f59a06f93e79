"""How far an exported file is from the model that it was made of, over random pictures of several sizes.

The file runs in a process of its own with its runtime alone: what runs there needs nothing of this package.
"""
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ce_mm.export import runtimes

#: Pictures of odd sides among them: there, strides and pools round.
SIZES = ((64, 64), (97, 161), (224, 192))
BATCHES = (1, 2, 3)
INPUTS = 20


def random_pictures(channels: int, count: int = INPUTS) -> Iterator[Tensor]:
    """Pictures (N, C, H, W), whole numbers from 0 to 255 in float32, all sizes and batches in turn; always the same.

    Each has colours and shapes of its own: a network averages over positions, so that noise alone looks all the same.
    """
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        batch, size = BATCHES[number // len(SIZES) % len(BATCHES)], SIZES[number % len(SIZES)]
        coarse = torch.rand(batch, channels, 5, 5, generator=generator)
        fine = torch.rand(batch, channels, *size, generator=generator)
        smooth = F.interpolate(coarse, size, mode="bilinear", align_corners=False)
        yield (255 * (0.8 * smooth + 0.2 * fine)).round()


def run_alone(kind: str, path: Path, batches: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Run a file of a format on batches of pictures where neither ce_mm nor OpenMMLab can be imported.

    Raises:
        ValueError: it cannot be loaded there, or fails on a batch.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, results = (f"{folder}/{name}.pth" for name in ("given", "results"))
        torch.save(list(batches), given)
        command = [sys.executable, "-P", runtimes.__file__, kind, str(path), given, results]
        process = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if process.returncode != 0:
            said = process.stderr.strip().splitlines()
            raise ValueError(
                f"exported as {kind}, the network does not run in a process without ce_mm and OpenMMLab: "
                f"{said[-1] if said else 'no reason given'} (status {process.returncode})"
            )
        return torch.load(results, weights_only=True)


def largest_difference(actual: Sequence[tuple[Tensor, ...]], expected: Sequence[tuple[Tensor, ...]]) -> float:
    """The largest difference of an output over its own largest value, of all outputs of all batches.

    Raises:
        ValueError: what is expected is not finite, or the shapes differ.
    """
    shapes = [[[tuple(y.shape) for y in outputs] for outputs in batches] for batches in (actual, expected)]
    for ours, theirs in zip(*shapes, strict=True):
        if ours != theirs:
            raise ValueError(f"the exported network gives {ours} where the model gives {theirs}")
    pairs = [pair for batches in zip(actual, expected, strict=True) for pair in zip(*batches, strict=True)]
    return max(relative_difference(ours.double(), theirs.double()) for ours, theirs in pairs)


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value; infinite where ``actual`` is not a number.

    Raises:
        ValueError: what is expected is not finite.
    """
    if not expected.isfinite().all():
        raise ValueError("the network's own output for random pictures is not finite; look at the checkpoint")
    if torch.equal(actual, expected):  # also where both are 0
        return 0.0
    difference = ((actual - expected).abs().max() / expected.abs().max()).item()
    return math.inf if math.isnan(difference) else difference
