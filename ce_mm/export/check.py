"""How far an exported network is from the model that it was made of, over random pictures of several sizes."""
import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ce_mm.export.runtimes import Network, first_line

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


def largest_difference(exported: Network, reference: Network, pictures: Iterable[Tensor]) -> float:
    """The largest difference of an output over its own largest value, of all outputs and pictures.

    Raises:
        ValueError: the reference does not run on these pictures or gives numbers that are not finite, or the exported
            network gives other shapes.
    """
    largest = 0.0
    for batch in pictures:
        shape = "×".join(map(str, batch.shape))
        with torch.no_grad():
            try:
                expected = reference(batch)
            except Exception as error:  # whatever the network's own code makes of its input
                raise ValueError(
                    f"the network does not run on pictures of {shape}: {first_line(error)}; only networks that take "
                    "pictures of any size are exported"
                ) from error
            try:
                actual = exported(batch)
            except Exception as error:  # each runtime has its own
                raise ValueError(f"the exported network fails on pictures of {shape}: {first_line(error)}") from error
        shapes = [[tuple(y.shape) for y in outputs] for outputs in (actual, expected)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"of pictures of {shape}, the exported network gives {shapes[0]} instead of {shapes[1]}")
        for ours, theirs in zip(actual, expected, strict=True):
            largest = max(largest, relative_difference(ours.double(), theirs.double()))
    return largest


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
