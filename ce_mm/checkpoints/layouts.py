"""Layouts of checkpoints, recognised by their names and brought under the names of an mmpretrain classifier."""
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ce_mm.checkpoints import authors, torchvision_names
from ce_mm.checkpoints.allowed import CLASSES, check_config, parameters
from ce_mm.checkpoints.architecture import describe, has_ce
from ce_mm.checkpoints.reading import CheckpointError
from ce_mm.checkpoints.recorded import recorded_model

LAYOUTS = ("auto", "authors", "mmpretrain", "mmdet", "backbone", "torchvision")
_DETECTORS = ("neck.", "rpn_head.", "roi_head.", "bbox_head.", "mask_head.")
#: Arguments that say how a backbone is trained or used, not what it is; and a VGG's own classifier.
_USE = {
    "frozen_stages", "norm_eval", "with_cp", "init_cfg", "pretrained", "out_indices", "zero_init_residual",
    "num_classes",
}  # fmt: skip
#: Arguments of a plain network that change what it computes, and leave no trace in its weights.
_PLAIN = ("style", "norm_cfg", "act_cfg", "strides", "dilations")
_SIZES = ("type", "depth", "in_channels", "stem_channels", "base_channels", "expansion", "num_stages", "widen_factor")
_VGG_CLASSIFIER = "backbone.classifier."


@dataclass(frozen=True)
class Network:
    """Weights with what is known of the network that they belong to.

    ``weights`` are by the names of an mmpretrain classifier: ``backbone.*``, and ``head.fc.*`` if there is a linear
    classifier. A norm under CE may still have the name that it has without CE. A VGG's own classifier is left out.
    """

    layout: str
    #: Of the backbone: type and arguments.
    config: dict
    weights: dict[str, Tensor]
    #: Name in ``weights`` -> name in the source.
    source: dict[str, str]
    #: Names in the source that have no place.
    left_out: list[str]
    #: Whether all settings of CE are known, or those that leave no trace in weights are taken to be the defaults.
    settings_known: bool
    #: What :func:`authors.to_authors` needs to give back a file as it was.
    originals: dict[str, Tensor] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    #: Names of the classes that the classifier tells apart, if the source says them.
    classes: list[str] | None = None


def read_network(checkpoint: dict, layout: str = "auto") -> Network:
    """Recognise the layout and give the weights their names.

    Args:
        checkpoint: what was read from a file: a dict with ``state_dict``, or the weights themselves; names may begin
            with ``module.``.
        layout: one of ``LAYOUTS``; any but auto must be the one that is found.

    Raises:
        CheckpointError: there are no weights, they are of no layout or network known here, or of another layout.
    """
    weights = _weights(checkpoint)
    found = _layout(weights)
    if layout not in ("auto", found):
        raise CheckpointError(f"these are weights in the layout {found!r}, not {layout!r}; give 'auto' or {found!r}")
    originals, order = {}, []
    if found == "authors":
        mapped, originals = authors.from_authors(weights)
        order = list(weights)
    elif found == "torchvision":
        mapped = {name: (new, weights[name]) for name, new in torchvision_names.mmpretrain_names(weights).items()}
    else:
        kept = ("",) if found == "backbone" else ("backbone.", "head.fc.")
        prefix = "backbone." if found == "backbone" else ""
        mapped = {name: (prefix + name, value) for name, value in weights.items() if name.startswith(kept)}
        originals, order = _kept_originals(checkpoint)
    mapped = {name: pair for name, pair in mapped.items() if not pair[0].startswith(_VGG_CLASSIFIER)}
    ours = {place: value for place, value in mapped.values()}
    backbone = {name.removeprefix("backbone."): value for name, value in ours.items() if name.startswith("backbone.")}
    config, known = _config(checkpoint, backbone, found)
    authors.check_originals(originals, ours)
    return Network(
        layout=found,
        config=config,
        weights=ours,
        source={place: name for name, (place, _) in mapped.items()},
        left_out=[name for name in weights if name not in mapped],
        settings_known=known,
        originals=originals,
        order=order,
        classes=_classes(checkpoint),
    )


def _weights(checkpoint: dict) -> dict[str, Tensor]:
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"expected weights by name, but there is {type(state).__name__} without any")
    weights = {}
    for name, value in _tensors(state).items():
        short = name.removeprefix("module.")
        if short in weights:
            raise CheckpointError(f"{short} is there twice, with and without 'module.' in front")
        weights[short] = value.detach()
    return weights


def _tensors(state: dict) -> dict[str, Tensor]:
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"expected a tensor for every name, but {name!r:.99} is {type(value).__name__}")
        if value.layout is not torch.strided or value.is_quantized or value.is_nested or value.is_meta:
            raise CheckpointError(f"{name} is no plain tensor but sparse, quantized, nested or without values")
    return state


def _layout(weights: Mapping[str, Tensor]) -> str:
    if authors.is_authors(weights):
        return "authors"
    if any(name.startswith("backbone.") for name in weights):
        classifier = any(name.startswith("head.fc.") for name in weights)  # whose neck may have weights, too
        detector = not classifier and any(name.startswith(_DETECTORS) for name in weights)
        return "mmdet" if detector else "mmpretrain"
    return "torchvision" if torchvision_names.is_torchvision(weights) else "backbone"


def _config(checkpoint: dict, weights: Mapping[str, Tensor], layout: str) -> tuple[dict, bool]:
    """The backbone's config: as recorded in the checkpoint, or else told from the weights."""
    recorded = (recorded_model(checkpoint) or {}).get("backbone")
    recorded = recorded if isinstance(recorded, dict) else {}
    kind = str(recorded.get("type")).rpartition(".")[2]
    plain = not any(map(has_ce, weights))
    config = describe(weights, recorded.get("widen_factor"))
    if kind in CLASSES and not plain and layout != "authors":
        recorded = {name: value for name, value in recorded.items() if name not in _USE} | dict(type=kind)
        check_config(recorded)
        recorded = _without_defaults(recorded)
        _check_sizes(recorded, config)
        return recorded, True
    if layout == "authors":
        config["ce_cfg"] = config.get("ce_cfg", {}) | authors.CE_CFG
    elif plain:
        kept = {name: recorded[name] for name in _PLAIN if name in recorded and name in parameters(config["type"])}
        check_config(config | kept)
        config = _without_defaults(config | kept | dict(norm_cfg=_plain_norm(kept.get("norm_cfg"))))
    return config, plain or layout == "authors"


def _plain_norm(norm: dict | None) -> dict | None:
    """A plain network's norm without how it was trained (frozen, on several processes)."""
    if norm is None:
        return None
    return {name: value for name, value in norm.items() if name != "requires_grad"} | dict(
        type="BN" if norm["type"] == "SyncBN" else norm["type"]
    )


def _check_sizes(recorded: dict, described: dict) -> None:
    """Before anything is built by a recorded config: a network of any size could be asked for there."""
    for name in _SIZES:
        if recorded.get(name) != described.get(name):
            raise CheckpointError(
                f"the config recorded in it says {name}={recorded.get(name, 'default')!r}, but its weights are those "
                f"of {name}={described.get(name, 'default')!r}"
            )


def _without_defaults(config: dict) -> dict:
    """What a recorded config says about the network itself, without arguments that are at their defaults."""
    defaults = parameters(config["type"])
    norms = (dict(type="BN"), dict(type="BN", requires_grad=True))

    def same(value: object, default: object) -> bool:
        return value == default or (isinstance(value, list) and tuple(value) == default)

    return {
        name: value
        for name, value in config.items()
        if value is not None
        and not (name in defaults and same(value, defaults[name]))
        and not (name == "norm_cfg" and value in norms)
        and not (name in ("ce_cfg", "ce_stem_cfg") and not value)
    }


def _kept_originals(checkpoint: dict) -> tuple[dict[str, Tensor], list[str]]:
    meta = checkpoint.get("meta")
    kept = meta.get("authors") if isinstance(meta, dict) else None
    if not isinstance(kept, dict) or not isinstance(kept.get("originals"), dict):
        return {}, []
    originals = _tensors(kept["originals"])
    order = kept.get("order")
    return originals, [name for name in order if isinstance(name, str)] if isinstance(order, list | tuple) else []


def _classes(checkpoint: dict) -> list[str] | None:
    meta = checkpoint.get("meta")
    dataset = meta.get("dataset_meta") if isinstance(meta, dict) else None
    classes = dataset.get("classes") if isinstance(dataset, dict) else None
    named = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    return list(classes) if named else None
