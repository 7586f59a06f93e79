"""What is asked of a trained network: which channels are inhibited, and what it loses without some of them."""
import json
from functools import partial
from pathlib import Path

from ce_mm.analysis.ablation import RATIOS, at_random, smallest_first
from ce_mm.analysis.channels import inhibited_ratio
from ce_mm.analysis.study.pictures import Cifar10, Pictures
from ce_mm.analysis.study.training import Recipe, evaluate, resume, test_batches
from ce_mm.files import replacing

#: The paper's protocol: inhibited channels over the first six layers, random drops behind the third.
FIRST_LAYERS = 6
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
        at_random (such a list for each of five seeds, the third layer alone losing channels).
    """
    path = folder / "measured.json"
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["threshold"] == threshold:
            return kept
    network, _, _ = resume(variant, seed, recipe, folder, device)
    accuracy, magnitudes = evaluate(network, test_batches(data, device))
    fewer = data._replace(test=Pictures(*(tensor[::STRIDE] for tensor in data.test)))
    batches = test_batches(fewer, device)
    ask = partial(_accuracy, network, batches)
    layers = list(magnitudes)
    third = {place: magnitudes[place] for place in layers[DROPPED_LAYER - 1 : DROPPED_LAYER]}
    ratios = [inhibited_ratio(magnitudes[place], threshold) for place in layers[:FIRST_LAYERS]]
    measured = dict(
        accuracy=accuracy,
        magnitudes=[values.tolist() for values in magnitudes.values()],
        threshold=threshold,
        inhibited=sum(ratios) / len(ratios),
        ratios=list(RATIOS),
        smallest_first=smallest_first(network, magnitudes, ask),
        at_random=at_random(network, third, ask),
    )
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(measured))
    return measured


def _accuracy(network: object, batches: list) -> float:
    return evaluate(network, batches)[0]
