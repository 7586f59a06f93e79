"""Which network a set of weights belongs to, told from their names and shapes alone.

The names are mmpretrain's, of a network with CE or without. What leaves no trace in weights (CE's ``correction`` and
``iterations``, the ``style`` of a ResNet) cannot be told and stays at its default.
"""
import inspect
import re
from collections.abc import Mapping
from functools import partial
from itertools import accumulate, pairwise
from operator import floordiv

import torch
from mmpretrain.models.backbones.resnet import Bottleneck
from mmpretrain.models.utils import make_divisible
from torch import Tensor

from ce_mm import ops
from ce_mm.backbones import CEVGG, CEMobileNetV2, CEResNet, CEShuffleNetV2
from ce_mm.checkpoints.reading import CheckpointError
from ce_mm.layers.ce_norm import BRANCHES

#: What CE itself holds, beside its base norm, at the end of a name.
OWN = re.compile(r"\.(mix|bd\.[^.]+|ir\..+)$")
_STEM = re.compile(r"((?:stem\.2\.)?[a-z]+1?)\.(?:bd|ir)\.")
_DEFAULTS = dict(
    in_channels=3, stem_channels=64, base_channels=64, deep_stem=False, avg_down=False, widen_factor=1.0,
    ce_cfg={}, ce_stem_cfg={}, branches=BRANCHES, group_size=16, reduction=4,
)  # fmt: skip
#: What an argument makes of a number of channels, in the order of the branches.
_RULES = dict(group_size=ops.fit_group_size, reduction=floordiv)
_SHUFFLENET_WIDTHS = {48: 0.5, 116: 1.0, 176: 1.5, 244: 2.0}


def has_ce(name: str) -> bool:
    """Whether a name under our layout belongs to a CE layer."""
    return ".norm." in name or OWN.search(name) is not None


def describe(weights: Mapping[str, Tensor], widen_factor: object = None) -> dict:
    """The config of the CE backbone that fits.

    Args:
        weights: a backbone's, by mmpretrain's names, without prefix.
        widen_factor: that of a MobileNetV2 if it fits, as several of them have the same widths.

    Returns:
        ``type`` and those arguments that differ from their defaults. For weights without CE, CE is at its defaults.

    Raises:
        CheckpointError: it is none of the backbones that exist here with CE, or its shapes contradict each other.
    """
    families = {
        r"layer\d\.\d+\.conv\d\.weight": _resnet,
        r"layer\d\.\d+\.conv\.\d\.conv\.weight": partial(_mobilenet_v2, hint=widen_factor),
        r"layers\.\d\.\d+\.branch2\.\d\.conv\.weight": _shufflenet_v2,
        r"features\.\d+\.conv\.weight": _vgg,
    }
    for pattern, family in families.items():
        if any(re.fullmatch(pattern, name) for name in weights):
            return _without_defaults(family(weights))
    raise CheckpointError(
        f"these are not the weights of a ResNet, MobileNetV2, ShuffleNetV2 or VGG (the first name is "
        f"{next(iter(weights), None)!r}); only those exist here with CE"
    )


def _resnet(weights: Mapping[str, Tensor]) -> dict:
    blocks = tuple(_length(weights, f"layer{stage}.") for stage in (1, 2, 3, 4))
    bottleneck = any(re.match(r"layer\d\.\d+\.(conv|bn)3\.", name) for name in weights)
    depths = {
        counts: depth
        for depth, (block, counts) in CEResNet.arch_settings.items()
        if issubclass(block, Bottleneck) == bottleneck
    }
    if blocks not in depths:
        raise CheckpointError(
            f"no ResNet has {', '.join(map(str, blocks))} {'bottleneck' if bottleneck else 'basic'} blocks in its "
            f"stages; expected one of depth {', '.join(map(str, sorted(depths.values())))}"
        )
    deep_stem = any(name.startswith("stem.") for name in weights)
    first, last = ("stem.0.conv", "stem.2.conv") if deep_stem else ("conv1", "conv1")
    config = dict(
        type="CEResNet",
        depth=depths[blocks],
        in_channels=_sizes(weights, f"{first}.weight", 4)[1],
        stem_channels=_sizes(weights, f"{last}.weight", 4)[0],
        base_channels=_sizes(weights, "layer1.0.conv1.weight", 4)[0],
        deep_stem=deep_stem,
        # With avg_down the convolution of a shortcut stands behind a pool.
        avg_down=any(".downsample.2." in name for name in weights),
    )
    config |= _ce_stages(weights, CEResNet, [rf"layer{stage}\." for stage in (1, 2, 3, 4)])
    # The stem's CE layer is bn1, gn1, ..., in a deep stem stem.2.bn, ...
    stem = next((match[1] for match in map(_STEM.match, weights) if match), None)
    return config | _ce_settings(weights, stem)


def _mobilenet_v2(weights: Mapping[str, Tensor], hint: object) -> dict:
    channels = [channels for _, channels, _, _ in CEMobileNetV2.arch_settings]
    # The last convolution of a block; the first stage does not expand, so that it comes earlier there.
    lasts = {f"layer{stage}.0.conv.{2 if stage > 1 else 1}": size for stage, size in enumerate(channels, 1)}
    places = {"conv1": 32} | lasts
    widths = {place: _sizes(weights, f"{place}.conv.weight", 4)[0] for place in places}

    def fits(factor: float) -> bool:
        return all(make_divisible(size * factor, 8) == widths[place] for place, size in places.items())

    estimate = widths[next(reversed(places))] / channels[-1]
    known = [hint] if isinstance(hint, int | float) and 0 < hint <= 5 else []
    usual = sorted((step / 20 for step in range(1, 101)), key=lambda factor: abs(factor - estimate))
    for factor in known + usual:
        if fits(factor):
            stages = _ce_stages(weights, CEMobileNetV2, [rf"layer{stage}\." for stage in range(1, 8)])
            return dict(type="CEMobileNetV2", widen_factor=factor) | stages | _ce_settings(weights)
    raise CheckpointError(
        f"no MobileNetV2 of widen_factor 0.05, 0.1, ... 5 has stages of {list(widths.values())} channels"
    )


def _shufflenet_v2(weights: Mapping[str, Tensor]) -> dict:
    width = 2 * _sizes(weights, "layers.0.0.branch2.2.conv.weight", 4)[0]
    if width not in _SHUFFLENET_WIDTHS:
        expected = ", ".join(map(str, _SHUFFLENET_WIDTHS))
        raise CheckpointError(f"no ShuffleNetV2 has {width} channels in its first stage; expected {expected}")
    stages = _ce_stages(weights, CEShuffleNetV2, [rf"layers\.{stage}\." for stage in range(3)])
    return dict(type="CEShuffleNetV2", widen_factor=_SHUFFLENET_WIDTHS[width]) | stages | _ce_settings(weights)


def _vgg(weights: Mapping[str, Tensor]) -> dict:
    convolutions = _length(weights, "features.")
    depths = {sum(blocks): depth for depth, blocks in CEVGG.arch_settings.items()}
    if convolutions not in depths:
        raise CheckpointError(f"no VGG has {convolutions} convolutions; expected {', '.join(map(str, depths))}")
    if not any(re.match(r"features\.\d+\.(?!conv\.)", name) for name in weights):
        raise CheckpointError("this VGG has no batch norm, on which CE could stand; expected VGG with batch norm")
    depth = depths[convolutions]
    ends = list(accumulate(blocks + 1 for blocks in CEVGG.arch_settings[depth]))  # a stage ends with its pool
    places = ["|".join(map(str, range(start, end))) for start, end in pairwise([0, *ends])]
    stages = _ce_stages(weights, CEVGG, [rf"features\.({place})\." for place in places])
    return dict(type="CEVGG", depth=depth) | stages | _ce_settings(weights)


def _ce_stages(weights: Mapping[str, Tensor], network: type, stages: list[str]) -> dict:
    """``ce_stages`` where CE stands in other stages than by the network's default; ``stages`` are patterns of names."""
    equalized = list(filter(has_ce, weights))
    found = tuple(any(re.match(stage, name) for name in equalized) for stage in stages)
    default = inspect.signature(network).parameters["ce_stages"].default
    return dict(ce_stages=found) if equalized and found != default else {}


def _ce_settings(weights: Mapping[str, Tensor], stem: str | None = None) -> dict:
    """``ce_cfg``, and ``ce_stem_cfg`` where the layer called ``stem`` differs; nothing for weights without CE."""
    if not any(map(has_ce, weights)):
        return {}
    sizes = {argument: {} for argument in _RULES}  # -> name of a layer -> its channels, and what it makes of them
    for name in weights:
        layer, _, part = name.rpartition(".bd.")
        if part == "running_whitening":
            count, size, _ = _sizes(weights, name, 3)
            sizes["group_size"][layer] = (count * size, size)
        layer, _, part = name.rpartition(".ir.")
        if part == "fc1.weight":
            sizes["reduction"][layer] = _sizes(weights, name, 2)[::-1]
    settings = dict(branches=tuple(branch for branch, layers in zip(BRANCHES, sizes.values(), strict=True) if layers))
    stem_settings = {}
    for argument, layers in sizes.items():
        stages = [pair for layer, pair in layers.items() if layer != stem] or list(layers.values())
        settings[argument] = _value(argument, _DEFAULTS[argument], stages)
        if stem in layers and (own := _value(argument, settings[argument], [layers[stem]])) != settings[argument]:
            stem_settings[argument] = own
    return dict(ce_cfg=_without_defaults(settings), ce_stem_cfg=stem_settings)


def _value(argument: str, default: int, layers: list[tuple[int, int]]) -> int:
    """The value of an argument that makes of these layers what they have."""
    makes = _RULES[argument]
    if all(makes(channels, default) == size for channels, size in layers):
        return default
    return max(makes(channels, max(size, 1)) for channels, size in layers)


def _without_defaults(config: dict) -> dict:
    return {name: value for name, value in config.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}


def _length(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbers follow the prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in weights if name.startswith(prefix)})


def _sizes(weights: Mapping[str, Tensor], name: str, dims: int) -> torch.Size:
    if name not in weights:
        raise CheckpointError(f"{name} is missing; expected all weights of the network")
    if weights[name].dim() != dims:
        raise CheckpointError(f"{name} has the shape {tuple(weights[name].shape)}; expected {dims} dimensions")
    return weights[name].shape
