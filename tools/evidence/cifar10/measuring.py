"""What is asked of a trained network: inhibited channels, their γ and β, and what it loses without some."""
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ce_mm.analysis.ablation import RATIOS, at_random, smallest_first
from ce_mm.analysis.channels import inhibited_ratios, mean_of_first
from ce_mm.analysis.norms import affine_parameters
from ce_mm.choices import LAYERS
from ce_mm.files import replacing
from tools.evidence.cifar10.pictures import Cifar10, colour_statistics
from tools.evidence.cifar10.training import Recipe, batches_of, evaluate, resume, top1

#: The paper drops channels at random behind the third layer.
DROPPED_LAYER = 3
#: One test picture of so many answers for the ablations, which ask sixty times.
STRIDE = 5


def measure(
    variant: str, seed: int, recipe: Recipe, data: Cifar10, folder: Path, threshold: float, device: str = "cpu"
) -> dict:
    """Measure a finished training, once: the answer is kept in its folder as ``measured.json``.

    Returns:
        accuracy (percent, all test pictures), magnitudes (a list for each layer), threshold, inhibited (the mean ratio
        over the first layers), ratios, smallest_first (accuracy at each ratio, all layers losing channels) and
        at_random (such a list for each of five seeds, the third layer alone losing channels); and norms: of the
        inhibited channels and the others of the first layers, how many there are, how many have β ≤ 0, and the median
        of |γ|.
    """
    network, _, _ = resume(variant, seed, recipe, folder, device)
    path = folder / "measured.json"
    measured = json.loads(path.read_text()) if path.exists() else {}
    if measured.get("threshold") != threshold:
        measured = _magnitudes_and_curves(network, data, threshold, device)
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(measured))
    return measured | dict(norms=_norms(network, measured["magnitudes"], threshold))


def _magnitudes_and_curves(network: nn.Module, data: Cifar10, threshold: float, device: str) -> dict:
    colours = colour_statistics(data.train.values)
    accuracy, magnitudes = evaluate(network, batches_of(data.test, colours, device))
    fewer = data.test._make(tensor[::STRIDE] for tensor in data.test)
    ask = partial(top1, network, batches_of(fewer, colours, device))
    dropped = list(magnitudes)[DROPPED_LAYER - 1]
    return dict(
        accuracy=accuracy,
        magnitudes=[values.tolist() for values in magnitudes.values()],
        threshold=threshold,
        inhibited=mean_of_first(inhibited_ratios(magnitudes, threshold), LAYERS),
        ratios=list(RATIOS),
        smallest_first=smallest_first(network, magnitudes, ask),
        at_random=at_random(network, {dropped: magnitudes[dropped]}, ask),
    )


def _norms(network: nn.Module, magnitudes: Sequence[Sequence[float]], threshold: float) -> dict[str, dict]:
    layers = list(affine_parameters(network).values())[:LAYERS]
    gamma, beta = (torch.cat(values) for values in zip(*layers, strict=True))
    inhibited = torch.tensor([value < threshold for layer in magnitudes[:LAYERS] for value in layer])
    return {
        name: dict(
            channels=int(chosen.sum()),
            nonpositive=int((beta[chosen] <= 0).sum()),
            gamma=gamma[chosen].abs().median().item() if chosen.any() else None,
        )
        for name, chosen in (("inhibited", inhibited), ("others", ~inhibited))
    }
