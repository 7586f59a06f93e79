"""The layout of the CE authors' released ResNet-50, there and back.

There CE stands beside its norm (``layer1.0.ce.*`` after ``layer1.0.bn3.*``, ``ce1.*`` after ``bn1.*``). It averages
r = s^(1/2) where CENorm averages s^(-1/2), and keeps a running mean that it never uses: for these two there is no exact
place here, and the originals are kept beside converted weights. Its σ̃² has Bessel's correction, and the stem is one
group of 64.
"""
import re
from collections.abc import Mapping

import torch
from mmpretrain.models.backbones.resnet import Bottleneck
from torch import Tensor

from ce_mm.backbones import CEResNet
from ce_mm.checkpoints.reading import CheckpointError
from ce_mm.layers.ce_norm import BRANCHES

#: What the authors' network is, beyond what names and shapes tell.
CE_CFG = dict(correction=1)
#: The authors' names after ``ce.``, in their order -> ours after ``bn3.``; None is their unused running mean.
_PARTS = {
    "x_weight": "mix",
    "running_mean": None,
    "running_wm": "bd.running_whitening",
    "AR.running_scale": "ir.running_inv_std_scale",
    "AR.fc.0.weight": "ir.fc1.weight",
    "AR.fc.1.weight": "ir.ln.weight",
    "AR.fc.1.bias": "ir.ln.bias",
    "AR.fc.3.weight": "ir.fc2.weight",
}
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_MEAN, _SCALE = "running_mean", "AR.running_scale"
_THEIRS = re.compile(r"(?:(layer\d\.\d+)\.ce|ce1)\.(.+)")
_CE_LAYER = re.compile(r"(backbone\.(.+))\.(?:mix|(?:norm|bd|ir)\..+)")
#: What their code has fixed, of CE's settings and of the norm's, and what only training uses.
_FIXED = dict(correction=1, reduction=4, branches=BRANCHES, iterations=3, max_pool=False, eps=1e-5)
_TRAINING = {"requires_grad", "momentum"}
#: Arguments of CEResNet that are fixed, and those that are free: widths, and what is looked at by itself.
_NETWORK = dict(style="pytorch", strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1))
_FREE = {"type", "depth", "in_channels", "stem_channels", "base_channels", "norm_cfg", "ce_cfg", "ce_stem_cfg"}


def is_authors(weights: Mapping[str, Tensor]) -> bool:
    """Whether the names are theirs."""
    return any(name.endswith((".x_weight", ".running_wm", ".AR.running_scale")) for name in weights)


def from_authors(weights: Mapping[str, Tensor]) -> tuple[dict[str, tuple[str, Tensor]], dict[str, Tensor]]:
    """Weights under our names.

    Args:
        weights: by the authors' names.

    Returns:
        their name -> (the name in an mmpretrain classifier, the value there); and the originals that this loses, by
        their name, in float64.

    Raises:
        CheckpointError: a network of basic blocks, or a running_scale of 0 or not finite.
    """
    if not any(re.match(r"layer\d\.\d+\.(conv|bn)3\.", name) for name in weights):
        raise CheckpointError(
            "these are the names of the CE authors' ResNet-18, of which there are two with the same names and other "
            "formulas (CE before or after the norm); only their bottleneck networks can be converted"
        )
    mapped, originals = {}, {}
    for name, value in weights.items():
        match = _THEIRS.fullmatch(name)
        if match is None:
            mapped[name] = (f"head.{name}" if name.startswith("fc.") else f"backbone.{name}", value)
            continue
        layer, part = f"backbone.{match[1]}.bn3" if match[1] else "backbone.bn1", match[2]
        if part not in _PARTS:
            raise CheckpointError(f"{name} is no name of the CE authors' layout; expected one of {', '.join(_PARTS)}")
        if part in (_MEAN, _SCALE):
            originals[name] = value.double()
        if part != _MEAN:
            mapped[name] = (f"{layer}.{_PARTS[part]}", _reciprocal(name, value) if part == _SCALE else value)
    return mapped, originals


def to_authors(
    weights: Mapping[str, Tensor], config: dict, originals: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights under the authors' names.

    Args:
        weights: of a whole classifier, by our names (``backbone.*``, ``head.fc.*``).
        config: of its backbone.
        originals: what :func:`from_authors` gave, or nothing. A running_scale is used where ours is still its
            reciprocal, a running mean (which nothing uses) as it is.

    Returns:
        the weights; and our name -> their name.

    Raises:
        CheckpointError: the authors' code could not hold this network, or would compute something else with it.
    """
    _check_network(config)
    result, names = {}, {}
    for name, value in weights.items():
        match = _CE_LAYER.fullmatch(name)
        if match is None:
            names[name] = name.removeprefix("head.").removeprefix("backbone.")
            result[names[name]] = value
        elif name not in names:  # the whole layer where its first part is met
            values, source = _layer(weights, *match.groups(), originals)
            result |= values
            names |= {ours: theirs for theirs, ours in source.items()}
    return result, names


def _layer(
    weights: Mapping[str, Tensor], ours: str, theirs: str, originals: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """One CENorm as the authors' norm and CE: the values, and the names of ours that they are."""
    ce = "ce1" if theirs == "bn1" else theirs.removesuffix("bn3") + "ce"
    source = {f"{theirs}.{part}": f"{ours}.norm.{part}" for part in _NORM}
    source |= {f"{ce}.{part}": f"{ours}.{own}" for part, own in _PARTS.items() if own}
    values = {name: weights[own] for name, own in source.items()}
    whitening, mean, scale = values[f"{ce}.running_wm"], f"{ce}.{_MEAN}", f"{ce}.{_SCALE}"
    values[mean] = whitening.new_zeros(*whitening.shape[:2], 1)
    kept = {
        name: originals[name].to(whitening.dtype)
        for name in (mean, scale)
        if name in originals and originals[name].shape == values[name].shape
    }
    if scale not in kept or (_inverse(kept[scale]) != values[scale]).any():  # it was trained on
        kept[scale] = _reciprocal(source[scale], values[scale])
    values |= kept
    order = [*(f"{theirs}.{part}" for part in _NORM), *(f"{ce}.{part}" for part in _PARTS)]
    return {name: values[name] for name in order}, source


def _check_network(config: dict) -> None:
    if config["type"] != "CEResNet" or not issubclass(CEResNet.arch_settings[config["depth"]][0], Bottleneck):
        raise CheckpointError(
            f"the CE authors' layout is that of a CEResNet with bottleneck blocks, but this is {config!r}; choose "
            "another target"
        )
    for name in sorted(set(config) - _FREE):
        if config[name] != _NETWORK.get(name):
            _refuse(f"{name}={config[name]!r}", f"{name}={_NETWORK[name]!r}" if name in _NETWORK else "none")
    norm = dict(norm=config.get("norm_cfg", dict(type="BN")))
    stages = dict(correction=0) | norm | config.get("ce_cfg", {})
    for settings in (norm, stages, stages | config.get("ce_stem_cfg", {})):
        for name, expected in _FIXED.items():
            value = settings.get(name, expected)
            if (tuple(value) if isinstance(value, list) else value) != expected:
                _refuse(f"{name}={value!r}", f"{name}={expected!r}")
        used = {name: value for name, value in (settings["norm"] or {}).items() if name not in _TRAINING}
        if dict(eps=1e-5) | used not in (dict(type=kind, eps=1e-5) for kind in ("BN", "SyncBN")):
            _refuse(f"norm={settings['norm']!r}", "BN with eps=1e-05")


def _refuse(what: str, theirs: str) -> None:
    raise CheckpointError(
        f"the CE authors' code cannot compute this network: it has {what}, and theirs has {theirs}; choose another "
        "target"
    )


def _inverse(scale: Tensor) -> Tensor:
    """1/scale, in float32 at least: rounded to half precision it would be off by up to 1/2048."""
    return scale.to(torch.promote_types(scale.dtype, torch.float32)).reciprocal()


def _reciprocal(name: str, scale: Tensor) -> Tensor:
    if not scale.isfinite().all() or not _inverse(scale).isfinite().all():
        raise CheckpointError(
            f"{name} must be finite and not 0 (nor so close that its reciprocal is not finite), got {scale.tolist()}; "
            "it is an average that moves away from 0 with the first training step, so these weights were never trained"
        )
    return _inverse(scale)
