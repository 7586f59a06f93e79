"""torchvision's names of MobileNetV2, ShuffleNetV2 and VGG, as mmpretrain names the same layers.

Both have the same convolutions and norms in the same order; torchvision counts them through, rectifiers and pools
included. A ResNet has the same names in both, but for the classifier.
"""
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from mmpretrain.models.backbones import VGG, MobileNetV2, ShuffleNetV2
from torch import nn

from ce_mm.checkpoints.reading import CheckpointError


class _Family(NamedTuple):
    mark: str  #: A name that the other families do not have.
    layer: str  #: What its layers are called.
    classifier: tuple[str, str]  #: What the names of its classifier begin with, there and here.
    networks: Callable[[dict | None], list[nn.Module]]  #: mmpretrain's, of every depth, by their norm_cfg.


_FAMILIES = (
    _Family(
        mark=r"features\.\d+\.(0|conv\.\d+)\.weight",
        layer=r"features\.\d{1,3}(\.conv)?(\.\d)+",
        classifier=("classifier.1.", "head.fc."),
        networks=lambda norm_cfg: [MobileNetV2()],
    ),
    _Family(
        mark=r"stage\d\.\d+\.branch\d\.\d+\.weight",
        layer=r"(conv[15]|stage\d\.\d{1,3}\.branch\d)\.\d",
        classifier=("fc.", "head.fc."),
        networks=lambda norm_cfg: [ShuffleNetV2()],
    ),
    _Family(
        mark=r"features\.\d+\.weight",
        layer=r"features\.\d{1,3}",
        classifier=("classifier.", "backbone.classifier."),
        networks=lambda norm_cfg: [VGG(depth, norm_cfg=norm_cfg) for depth in VGG.arch_settings],
    ),
)


def is_torchvision(names: Iterable[str]) -> bool:
    """Whether the names are a torchvision classifier's or feature extractor's, and not mmpretrain's."""
    names = list(names)
    resnet = any(name.startswith("fc.") for name in names) and _any(r"layer\d\.\d+\.conv\d\.weight", names)
    return resnet or any(_any(family.mark, names) for family in _FAMILIES)


def mmpretrain_names(names: Iterable[str]) -> dict[str, str]:
    """torchvision's name -> the name in an mmpretrain classifier (``backbone.*``, ``head.fc.*``).

    Raises:
        CheckpointError: a name has no place there, or no network of torchvision's has so many layers.
    """
    names = list(names)
    family = next((family for family in _FAMILIES if _any(family.mark, names)), None)
    if family is None:
        return {name: f"{'head' if name.startswith('fc.') else 'backbone'}.{name}" for name in names}
    head, ours = family.classifier
    layers = {name: name.rpartition(".")[0] for name in names if not name.startswith(head)}
    for name, layer in layers.items():
        if not re.fullmatch(family.layer, layer):
            raise CheckpointError(f"{name} has no place in the network of torchvision that the other names are from")
    places = _places(set(layers.values()), family, any(name.endswith(".running_mean") for name in names))
    backbone = {name: f"backbone.{places[layer]}.{name.rpartition('.')[2]}" for name, layer in layers.items()}
    return backbone | {name: ours + name.removeprefix(head) for name in names if name.startswith(head)}


def _places(layers: set[str], family: _Family, norms: bool) -> dict[str, str]:
    """torchvision's name of a layer -> mmpretrain's: the first is the first, and so on."""
    with torch.device("meta"):
        networks = family.networks(dict(type="BN") if norms else None)
    known = [list(dict.fromkeys(name.rpartition(".")[0] for name in network.state_dict())) for network in networks]
    places = next((places for places in known if len(places) == len(layers)), None)
    if places is None:
        kind, expected = type(networks[0]).__name__, ", ".join(str(len(places)) for places in known)
        raise CheckpointError(f"no {kind} of torchvision's has {len(layers)} layers with weights; expected {expected}")
    in_order = sorted(
        layers, key=lambda layer: re.sub(r"\d+", lambda number: number[0].zfill(3), layer.replace("conv5", "stage5"))
    )
    return dict(zip(in_order, places, strict=True))


def _any(pattern: str, names: list[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)
