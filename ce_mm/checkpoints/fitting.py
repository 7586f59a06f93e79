"""Weights in the network that they are for: it is built, filled, checked and run once."""
import copy
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ce_mm.checkpoints.architecture import OWN
from ce_mm.checkpoints.layouts import Network
from ce_mm.checkpoints.reading import CheckpointError

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Fitted:
    """All weights of a model, in its order and by its names; those that the source has not are CE's starting values."""

    #: ``dict(type='ImageClassifier', ...)``, or ``dict(backbone=...)`` for the backbone alone.
    model: dict
    weights: dict[str, Tensor]
    #: Name in the source -> name in the model.
    mapped: dict[str, str]


def fit(network: Network, classifier: bool) -> Fitted:
    """Put weights into the network that their config describes.

    Args:
        network: of a network without CE, the weights fill the base norms, and CE is at its starting values (the same
            ones each time).
        classifier: a whole mmpretrain classifier, or the backbone alone.

    Raises:
        CheckpointError: a weight is missing, is one too many, has a wrong shape or type or is not finite, or the
            network's output for a random picture is not finite.
    """
    config = _model_config(network) if classifier else dict(backbone=network.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _build(config if classifier else config["backbone"])
        picture = torch.rand(1, network.config.get("in_channels", 3), 64, 64)
    initial = model.state_dict()
    mapped = _places(network, initial, classifier)
    given = {mapped[source]: network.weights[name] for name, source in network.source.items() if source in mapped}
    without_ce = not any(OWN.search(name) for name in given)
    needed = [n for n in initial if not (n.endswith("num_batches_tracked") or (without_ce and OWN.search(n)))]
    _expect_none([name for name in needed if name not in given], "there is no value for", network)
    for source, name in mapped.items():
        _check_value(source, given[name], initial[name])
    weights = {name: given.get(name, value) for name, value in initial.items()}
    _try(model, weights, picture, config)
    return Fitted(config, weights, mapped)


def _model_config(network: Network) -> dict:
    if network.layout == "mmpretrain" and network.left_out:
        raise CheckpointError(
            f"{network.left_out[0]} has no place in a backbone, global average pooling and a linear classifier, so "
            "that the target would be another network; choose the target 'backbone'"
        )
    weight = network.weights.get("head.fc.weight")
    if weight is None or weight.dim() != 2:
        raise CheckpointError(
            "there is no linear classifier (head.fc.weight) in it, which the target needs; choose the target "
            "'backbone', or convert a whole classifier"
        )
    num_classes, in_channels = weight.shape
    return dict(
        type="ImageClassifier",
        backbone=network.config,
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=num_classes, in_channels=in_channels),
    )


def _build(config: dict) -> nn.Module:
    try:
        with DefaultScope.overwrite_default_scope("mmpretrain"):
            return MODELS.build(copy.deepcopy(config))
    except Exception as error:  # whatever the network's own code makes of recorded arguments
        raise CheckpointError(_failed(config, "built", error)) from error


def _places(network: Network, initial: Mapping[str, Tensor], classifier: bool) -> dict[str, str]:
    """Name in the source -> name in the model."""
    prefix = "" if classifier else "backbone."
    places, unknown = {}, []
    for name, source in network.source.items():
        if not name.startswith(prefix):
            continue
        own = name.removeprefix(prefix)
        own = own if own in initial else re.sub(r"\.(\w+)$", r".norm.\1", own)  # a norm that CE stands on here
        if own not in initial:
            unknown.append(source)
        elif own in places.values():
            raise CheckpointError(f"{source} is there twice, under two names")
        places[source] = own
    _expect_none(unknown, f"{network.config['type']} has no place for", network)
    return places


def _expect_none(names: list[str], complaint: str, network: Network) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        config = "" if network.settings_known else (
            " (the source records no config in meta['cfg'], so that base norms under CE are taken to be BN)"
        )
        raise CheckpointError(f"{complaint} {names[0]}{more}; expected the weights of {network.config!r}{config}")


def _check_value(name: str, value: Tensor, expected: Tensor) -> None:
    if value.shape != expected.shape:
        raise CheckpointError(f"{name} has the shape {tuple(value.shape)}; expected {tuple(expected.shape)}")
    if value.dtype not in (_FLOATING if expected.is_floating_point() else _WHOLE):
        kind = "a floating-point type of 16 bits or more" if expected.is_floating_point() else "whole numbers"
        raise CheckpointError(f"{name} is of type {value.dtype}; expected {kind}")
    if not torch.isfinite(value.double()).all():
        raise CheckpointError(f"{name} holds NaN or infinite values; take a checkpoint from before that happened")


def _try(model: nn.Module, weights: dict[str, Tensor], picture: Tensor, config: dict) -> None:
    """Load strictly and run once, in float64: what is not finite there has a deeper reason than rounding."""
    try:
        model.double().eval()
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # what is wrong is said below
            model.load_state_dict(weights, strict=True)
            output = model(picture.double())
        finite = all(torch.isfinite(each).all() for each in (output if isinstance(output, tuple) else (output,)))
    except Exception as error:  # of arguments that the network takes, but cannot compute with
        raise CheckpointError(_failed(config, "run", error)) from error
    if not finite:
        raise CheckpointError(
            "the network's output for a random picture is not finite, although its weights are; look for a negative "
            "running_var, or for weights of another network"
        )


def _failed(config: dict, what: str, error: Exception) -> str:
    """In one line: PyTorch's and mmengine's errors may have many."""
    reason = str(error).strip().partition("\n")[0]
    return f"the network {config!r} cannot be {what}: {type(error).__name__}: {reason}"
