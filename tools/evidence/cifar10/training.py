"""One training of the study, an epoch at a time: it can be stopped anywhere and goes on, bit for bit, where it was."""
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from ce_mm.analysis.channels import channel_magnitudes, inhibited_ratios
from ce_mm.files import replacing
from tools.evidence.cifar10.network import VARIANTS, build_network
from tools.evidence.cifar10.pictures import Cifar10, Colours, Pictures, augmented, colour_statistics, normalised

TEST_BATCH = 500


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, by SGD with momentum."""

    widths: tuple[int | str, ...]
    epochs: int
    batch: int
    rate: Callable[[float], float]  #: the learning rate after so many epochs, a fraction of them included
    weight_decay: float
    momentum: float = 0.9
    norm_decay: bool = True  #: whether γ and β decay like the other weights
    mixed: bool = False  #: train with bfloat16 by autocast, channels last: cheap on CPUs that multiply bfloat16

    def decay(self, pictures: int = 50_000) -> float:
        """Weight decay times the sum of the learning rates of all steps, over a data set of so many pictures.

        A weight that no gradient reaches ends at about exp(-decay / (1 - momentum)) of its start.
        """
        steps = pictures // self.batch
        rates = (self.rate(epoch + step / steps) for epoch in range(self.epochs) for step in range(steps))
        return self.weight_decay * sum(rates)


def _one_cycle(peak: float, epochs: int, warm_up: float) -> Callable[[float], float]:
    def rate(epoch: float) -> float:
        if epoch < warm_up:
            return peak * (epoch + 0.01) / (warm_up + 0.01)
        return peak * 0.5 * (1 + math.cos(math.pi * (epoch - warm_up) / (epochs - warm_up)))

    return rate


def _steps(start: float, every: int) -> Callable[[float], float]:
    return lambda epoch: start * 0.1 ** (int(epoch) // every)


_SMALL = (16, "M", 32, 32, "M", 64, 64, "M", 128, 128)
#: Twice as wide: few epochs are enough for it to have channels to spare.
_WIDE = (32, "M", 64, 64, "M", 128, 128, "M", 256, 256)
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
RECIPES = {
    # A few minutes on one core. Seven layers; a learning rate that rises and falls, since there are few epochs.
    "short": Recipe(_SMALL, 4, 128, _one_cycle(0.1, 4, 1.0), weight_decay=5e-4),
    # The pressure that the paper's weights are under (see Recipe.decay) in a twentieth of its epochs.
    "decay": Recipe(_WIDE, 8, 128, _one_cycle(0.1, 8, 1.0), weight_decay=4e-3, mixed=True),
    "decay-weights": Recipe(_WIDE, 8, 128, _one_cycle(0.1, 8, 1.0), weight_decay=4e-3, norm_decay=False, mixed=True),
    # The paper's: 160 epochs, batch 256, 0.1 falling by ten every 60. Momentum and weight decay are ours, as usual.
    "paper": Recipe(VGG16, 160, 256, _steps(0.1, 60), weight_decay=5e-4),
}


def train(
    variant: str,
    seed: int,
    recipe: Recipe,
    data: Cifar10,
    folder: Path,
    threshold: float,
    until: float = math.inf,
    device: str = "cpu",
) -> bool:
    """Train one variant from one seed, or go on with it.

    Args:
        variant: a name of VARIANTS.
        seed: of the weights, the order of the pictures and their augmentation.
        recipe: how to train.
        data: the data set.
        folder: gets ``state.pt`` (the last finished epoch) and ``curve.json`` (a record of every epoch).
        threshold: below which a channel counts as inhibited.
        until: no epoch begins after this time (``time.time``).
        device: where to train.

    Returns:
        Whether all epochs are done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network, optimizer, curve = resume(variant, seed, recipe, folder, device)
    colours = colour_statistics(data.train.values)
    test = batches_of(data.test, colours, device)
    pictures, colours = (part._make(tensor.to(device) for tensor in part) for part in (data.train, colours))
    while len(curve) < recipe.epochs:
        if time.time() >= until:
            return False
        epoch = len(curve)
        name = f"{variant}, seed {seed}, epoch {epoch + 1}"
        batches = len(pictures.labels) // recipe.batch
        steps = training_steps(network, optimizer, recipe, pictures, colours, seed, epoch)
        losses = list(tqdm(steps, name, batches, leave=False))
        accuracy, magnitudes = evaluate(network, test)
        curve.append(
            dict(
                epoch=epoch + 1,
                loss=torch.stack(losses[batches // 2 :]).mean().item(),  # of the second half
                accuracy=accuracy,
                inhibited=inhibited_ratios(magnitudes, threshold),
            )
        )
        with replacing(folder / "state.pt") as unfinished:
            torch.save(dict(network=network.state_dict(), optimizer=optimizer.state_dict(), curve=curve), unfinished)
        with replacing(folder / "curve.json") as unfinished:
            unfinished.write_text(json.dumps(curve, indent=1))
    return True


def resume(
    variant: str, seed: int, recipe: Recipe, folder: Path, device: str = "cpu"
) -> tuple[nn.Module, torch.optim.Optimizer, list[dict]]:
    """The network, its optimizer and the record of its epochs, as the last finished epoch left them."""
    torch.manual_seed(seed)
    layout = torch.channels_last if recipe.mixed else torch.contiguous_format
    network = build_network(VARIANTS[variant], recipe.widths).to(device, memory_format=layout)
    optimizer = torch.optim.SGD(_groups(network, recipe), recipe.rate(0), recipe.momentum)
    if not (folder / "state.pt").exists():
        return network, optimizer, []
    state = torch.load(folder / "state.pt", weights_only=True, map_location=device)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return network, optimizer, state["curve"]


def _groups(network: nn.Module, recipe: Recipe) -> list[dict]:
    """The parameters with the weight decay of each: γ and β, of the norm itself or the one below CE, have their own."""
    norms, others = [], []
    for name, parameter in network.named_parameters():
        (norms if name.endswith(("norm.weight", "norm.bias")) else others).append(parameter)
    return [
        dict(params=others, weight_decay=recipe.weight_decay),
        dict(params=norms, weight_decay=recipe.weight_decay if recipe.norm_decay else 0.0),
    ]


def batches_of(pictures: Pictures, colours: Colours, device: str = "cpu") -> list[tuple[Tensor, Tensor]]:
    """All pictures, normalised, with their labels."""
    values = normalised(pictures.values, colours).to(device)
    return list(zip(values.split(TEST_BATCH), pictures.labels.to(device).split(TEST_BATCH), strict=True))


@torch.no_grad()
def top1(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Top-1 accuracy in percent, in eval mode."""
    network.eval()
    right = sum((network(pictures).argmax(1) == labels).sum().item() for pictures, labels in batches)
    return 100 * right / sum(len(labels) for _, labels in batches)


def evaluate(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> tuple[float, dict[str, Tensor]]:
    """:func:`top1`, and the magnitude of every channel over the same pictures."""
    found: list[float] = []
    magnitudes = channel_magnitudes(network, [lambda: found.append(top1(network, batches))])
    return found[0], magnitudes


def training_steps(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    pictures: Pictures,
    colours: Colours,
    seed: int,
    epoch: int,
) -> Iterator[Tensor]:
    """Train one epoch, a step for each loss () that is asked for. What it draws depends on seed and epoch alone."""
    random = torch.Generator().manual_seed(1000 * seed + epoch)
    values, labels = pictures
    batches = len(labels) // recipe.batch
    network.train()
    for index, chosen in enumerate(_shuffled(len(labels), recipe.batch, random)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(epoch + index / batches)
        batch = normalised(augmented(values[chosen], random), colours)
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=recipe.mixed):
            loss = cross_entropy(network(batch), labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield loss.detach()


def _shuffled(count: int, batch: int, random: torch.Generator) -> Iterator[Tensor]:
    """The numbers below ``count`` in random order, in whole batches."""
    return (part for part in torch.randperm(count, generator=random).split(batch) if len(part) == batch)
