"""torchvision's names of MobileNetV2, ShuffleNetV2 and VGG, as mmpretrain names the same layers.

torchvision counts every module (convolution, norm, rectifier) in one row, mmpretrain puts the three into one ConvModule
with ``conv`` and ``bn``. A ResNet has the same names in both, but for the classifier.
"""
import re
from collections.abc import Callable, Iterable

from ce_mm.backbones import CEMobileNetV2
from ce_mm.checkpoints.reading import CheckpointError

_KINDS = ("conv", "bn")


def is_torchvision(names: Iterable[str]) -> bool:
    """Whether the names are a torchvision classifier's or feature extractor's, and not mmpretrain's."""
    names = list(names)
    resnet = any(name.startswith("fc.") for name in names) and _any(r"layer\d\.\d+\.conv\d\.weight", names)
    return resnet or any(_any(mark, names) for mark in _FAMILIES)


def mmpretrain_names(names: Iterable[str]) -> dict[str, str]:
    """torchvision's name -> the name in an mmpretrain classifier (``backbone.*``, ``head.fc.*``).

    Raises:
        CheckpointError: a name has no place there.
    """
    names = list(names)
    family = next((family for mark, family in _FAMILIES.items() if _any(mark, names)), _resnet)
    rename, renamed = family(names), {}
    for name in names:
        try:
            renamed[name] = rename(name)
        except (AttributeError, TypeError, KeyError, IndexError, ValueError):  # no such name or number
            message = f"{name} has no place in the network of torchvision that the other names are from"
            raise CheckpointError(message) from None
    return renamed


def _any(pattern: str, names: list[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)


def _resnet(names: list[str]) -> Callable[[str], str]:
    return lambda name: f"head.{name}" if name.startswith("fc.") else f"backbone.{name}"


def _mobilenet_v2(names: list[str]) -> Callable[[str], str]:
    # features.0 is the stem, then come the blocks of all stages in one row, then conv2.
    blocks = [(stage, i) for stage, (_, _, n, _) in enumerate(CEMobileNetV2.arch_settings, 1) for i in range(n)]
    expanded = {name.split(".")[1] for name in names if re.match(r"features\.\d+\.conv\.1\.0\.", name)}

    def rename(name: str) -> str:
        if name.startswith("classifier.1."):
            return f"head.fc.{name.removeprefix('classifier.1.')}"
        match = re.fullmatch(r"features\.(\d+)\.(?:conv\.)?(\d+)\.(?:(\d+)\.)?(\w+)", name)
        place, module, part, last = match.groups()
        if int(place) in (0, len(blocks) + 1):
            return f"backbone.{'conv1' if place == '0' else 'conv2'}.{_KINDS[int(module)]}.{last}"
        stage, block = blocks[int(place) - 1]
        if part is None:  # the last convolution and its norm stand in the row themselves
            linear = 2 if place in expanded else 1
            module, part = linear, int(module) - linear
        return f"backbone.layer{stage}.{block}.conv.{module}.{_KINDS[int(part)]}.{last}"

    return rename


def _shufflenet_v2(names: list[str]) -> Callable[[str], str]:
    # Rectifiers count too: branch1 is conv, bn, conv, bn, relu; branch2 is conv, bn, relu, conv, bn, conv, bn, relu.
    rows = {
        "branch1": {0: "0.conv", 1: "0.bn", 2: "1.conv", 3: "1.bn"},
        "branch2": {0: "0.conv", 1: "0.bn", 3: "1.conv", 4: "1.bn", 5: "2.conv", 6: "2.bn"},
    }

    def rename(name: str) -> str:
        if name.startswith("fc."):
            return f"head.{name}"
        if match := re.fullmatch(r"(conv1|conv5)\.(\d+)\.(\w+)", name):
            place = {"conv1": "conv1", "conv5": "layers.3"}[match[1]]
            return f"backbone.{place}.{_KINDS[int(match[2])]}.{match[3]}"
        match = re.fullmatch(r"stage(\d)\.(\d+)\.(branch[12])\.(\d+)\.(\w+)", name)
        stage, block, branch, module, last = match.groups()
        return f"backbone.layers.{int(stage) - 2}.{block}.{branch}.{rows[branch][int(module)]}.{last}"

    return rename


def _vgg(names: list[str]) -> Callable[[str], str]:
    parts = [match for match in (re.fullmatch(r"features\.(\d{1,3})\.(\w+)", name) for name in names) if match]
    features = {int(match[1]) for match in parts}
    norms = {int(match[1]) for match in parts if match[2] == "running_mean"}
    places, last, place = {}, None, -1
    for module in sorted(features - norms):
        # After a convolution come its norm, if any, and a rectifier; where one module more lies between, it is a pool.
        pool = last is not None and module - last > (3 if last + 1 in norms else 2)
        place += 2 if pool else 1
        places[module], last = f"{place}.conv", module
        if module + 1 in norms:
            places[module + 1] = f"{place}.bn"

    def rename(name: str) -> str:
        if name.startswith("classifier."):
            return f"backbone.{name}"
        match = re.fullmatch(r"features\.(\d+)\.(\w+)", name)
        return f"backbone.features.{places[int(match[1])]}.{match[2]}"

    return rename


#: What a name looks like that the others have not -> how the names of that family are changed.
_FAMILIES = {
    r"features\.\d+\.(0|conv\.\d+)\.weight": _mobilenet_v2,
    r"stage\d\.\d+\.branch\d\.\d+\.weight": _shufflenet_v2,
    r"features\.\d+\.weight": _vgg,
}
