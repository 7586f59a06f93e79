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

from ce_mm import ops
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
_THEIR_SETTINGS = dict(correction=1, reduction=4, branches=BRANCHES, iterations=3, max_pool=False, eps=1e-5)
_DEFAULTS = dict(correction=0)
_TRAINING = {"requires_grad", "momentum"}
#: Arguments of CEResNet that are free: widths, and what does not change what the network computes in inference.
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
        their name.

    Raises:
        CheckpointError: a network of basic blocks, or a running_scale of 0 or not finite.
    """
    ce, bottleneck = (
        any(re.match(rf"layer\d\.\d+\.{part}\.", name) for name in weights) for part in ("ce", "(?:conv|bn)3")
    )
    if ce and not bottleneck:
        raise CheckpointError(
            "these are the names of the CE authors' ResNet-18, of which there are two with the same names and other "
            "formulas (CE before or after the norm); only their bottleneck networks can be converted"
        )
    mapped, originals = {}, {}
    for name, value in weights.items():
        match = _THEIRS.fullmatch(name)
        if match is None:
            place = f"head.{name}" if name.startswith("fc.") else f"backbone.{name}"
            mapped[name] = (place, value)
            continue
        if match[2] not in _PARTS:
            raise CheckpointError(f"{name} is no name of the CE authors' layout; expected one of {', '.join(_PARTS)}")
        if match[2] in (_MEAN, _SCALE):
            originals[name] = value
        if match[2] == _SCALE:
            value = _reciprocal(name, value)
        if match[2] != _MEAN:
            mapped[name] = (f"{_place(match)}.{_PARTS[match[2]]}", value)
    return mapped, originals


def check_originals(originals: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Look at originals before they are kept, or given back.

    Args:
        originals: by the authors' names.
        weights: by our names.

    Raises:
        CheckpointError: one is none of the authors' originals, of another shape or type, or not finite.
    """
    for name, value in originals.items():
        match = _THEIRS.fullmatch(name)
        if match is None or match[2] not in (_MEAN, _SCALE):
            raise CheckpointError(f"{name} is kept for the CE authors' layout, but is no {_MEAN} or {_SCALE} there")
        shape, whitening = (1,), weights.get(f"{_place(match)}.bd.running_whitening")
        if match[2] == _MEAN:
            shape = value.shape if whitening is None else (*whitening.shape[:2], 1)
        if value.shape != shape or not value.is_floating_point() or value.dtype.itemsize < 2:
            raise CheckpointError(f"{name} is {value.dtype} of shape {tuple(value.shape)}; expected floats of {shape}")
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name} holds NaN or infinite values; take a checkpoint from before that happened")


def _place(theirs: re.Match) -> str:
    """Where our CE layer is, for a match of ``_THEIRS``."""
    return f"backbone.{theirs[1]}.bn3" if theirs[1] else "backbone.bn1"


def to_authors(
    weights: Mapping[str, Tensor], config: dict, originals: Mapping[str, Tensor], order: list[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights under the authors' names.

    Args:
        weights: of a whole classifier, by our names (``backbone.*``, ``head.fc.*``).
        config: of its backbone.
        originals: what :func:`from_authors` gave, or nothing. A running_scale is used where ours is still its
            reciprocal, a running mean (which nothing uses) as it is.
        order: the authors' names in the order in which the file had them, or nothing.

    Returns:
        the weights; and their name -> our name.

    Raises:
        CheckpointError: the authors' code could not hold this network, or would compute something else with it.
    """
    _check_network(weights, config)
    result, source = {}, {}
    for name, value in weights.items():
        match = _CE_LAYER.fullmatch(name)
        if match is None:
            theirs = name.removeprefix("head.").removeprefix("backbone.")
            result[theirs], source[theirs] = value, name
        elif f"{match[2]}.weight" not in result:  # the whole layer where its first part is met
            values, names = _layer(weights, *match.groups(), originals)
            result |= values
            source |= names
    if set(order) == set(result):
        result = {name: result[name] for name in order}
    return result, source


def _layer(
    weights: Mapping[str, Tensor], ours: str, theirs: str, originals: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """One CENorm as the authors' norm and CE: the values, and the names of ours that they are."""
    source = {f"{theirs}.{part}": f"{ours}.norm.{part}" for part in _NORM}
    values = {name: weights[own] for name, own in source.items()}
    ce = "ce1" if theirs == "bn1" else theirs.removesuffix("bn3") + "ce"
    for part, own in _PARTS.items():
        name, original = f"{ce}.{part}", originals.get(f"{ce}.{part}")
        if part == _MEAN:
            whitening = weights[f"{ours}.bd.running_whitening"]
            zeros = whitening.new_zeros(*whitening.shape[:2], 1)
            values[name] = original if original is not None and original.shape == zeros.shape else zeros
            continue
        value = weights[f"{ours}.{own}"]
        values[name] = _scale(f"{ours}.{own}", value, original) if part == _SCALE else value
        source[name] = f"{ours}.{own}"
    return values, source


def _check_network(weights: Mapping[str, Tensor], config: dict) -> None:
    if config["type"] != "CEResNet" or not issubclass(CEResNet.arch_settings[config["depth"]][0], Bottleneck):
        raise CheckpointError(
            f"the CE authors' layout is that of a CEResNet with bottleneck blocks, but this is {config!r}; choose "
            "another target"
        )
    for name in sorted(set(config) - _FREE):
        _refuse(f"{name}={config[name]!r}", "none")
    norm = config.get("norm_cfg", dict(type="BN"))
    stages = _DEFAULTS | dict(norm=norm) | config.get("ce_cfg", {})
    for settings in (dict(norm=norm), stages, stages | config.get("ce_stem_cfg", {})):
        for name, expected in _THEIR_SETTINGS.items():
            value = settings.get(name, expected)
            if (tuple(value) if isinstance(value, list) else value) != expected:
                _refuse(f"{name}={settings[name]!r}", f"{name}={expected!r}")
        norm = {name: value for name, value in (settings["norm"] or {}).items() if name not in _TRAINING}
        if norm | dict(eps=norm.get("eps", 1e-5)) not in (dict(type=kind, eps=1e-5) for kind in ("BN", "SyncBN")):
            _refuse(f"norm={settings['norm']!r}", "BN with eps=1e-05")
    for name, value in weights.items():
        layer, _, rest = name.rpartition(".bd.running_whitening")
        if layer and not rest:
            group, channels = value.shape[-1], value.shape[0] * value.shape[1]
            expected = ops.fit_group_size(channels, 64 if layer == "backbone.bn1" else 16)
            if group != expected:
                _refuse(f"groups of {group} in {layer}", f"groups of {expected}")


def _refuse(what: str, theirs: str) -> None:
    raise CheckpointError(
        f"the CE authors' code cannot compute this network: it has {what}, and theirs has {theirs}; choose another "
        "target"
    )


def _inverse(scale: Tensor) -> Tensor:
    """1/scale, in float32 at least: rounded to half precision it would be off by up to 1/2048."""
    return scale.to(torch.promote_types(scale.dtype, torch.float32)).reciprocal()


def _reciprocal(name: str, scale: Tensor) -> Tensor:
    if not scale.is_floating_point() or not torch.isfinite(scale).all() or not torch.isfinite(_inverse(scale)).all():
        raise CheckpointError(
            f"{name} must be finite and not 0 (nor so close that its reciprocal is not finite), got {scale.tolist()}; "
            "it is an average that moves away from 0 with the first training step, so these weights were never trained"
        )
    return _inverse(scale)


def _scale(name: str, ours: Tensor, original: Tensor | None) -> Tensor:
    if original is not None and _inverse(original).dtype == ours.dtype and torch.equal(_inverse(original), ours):
        return original
    return _reciprocal(name, ours)
