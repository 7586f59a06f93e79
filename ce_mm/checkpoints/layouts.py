"""Layouts of checkpoints, recognised by their names and brought under the names of an mmpretrain classifier."""
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ce_mm.checkpoints import authors, torchvision_names
from ce_mm.checkpoints.architecture import describe, has_ce
from ce_mm.checkpoints.reading import CheckpointError, weights_of
from ce_mm.checkpoints.recorded import recorded_backbone, untraced

_DETECTORS = ("neck.", "rpn_head.", "roi_head.", "bbox_head.", "mask_head.")
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
    originals: dict[str, Tensor]
    #: Names of the classes that the classifier tells apart, if the source says them.
    classes: list[str] | None


def read_network(checkpoint: dict, layout: str = "auto") -> Network:
    """Recognise the layout of what ``read_checkpoint`` gives, and give the weights their names.

    Raises:
        CheckpointError: there are no weights, they are of no layout or network known here, or of another than
            ``layout``, unless that is auto.
    """
    weights = weights_of(checkpoint)
    found = _layout(weights)
    if layout not in ("auto", found):
        raise CheckpointError(f"these are weights in the layout {found!r}, not {layout!r}; give 'auto' or {found!r}")
    originals = _originals(checkpoint)
    if found == "authors":
        mapped, originals = authors.from_authors(weights)
    elif found == "torchvision":
        mapped = {name: (new, weights[name]) for name, new in torchvision_names.mmpretrain_names(weights).items()}
    elif found == "backbone":
        mapped = {name: (f"backbone.{name}", value) for name, value in weights.items()}
    else:
        mapped = {name: (name, value) for name, value in weights.items() if name.startswith(("backbone.", "head.fc."))}
    mapped = {name: pair for name, pair in mapped.items() if not pair[0].startswith(_VGG_CLASSIFIER)}
    ours = dict(mapped.values())
    config, known = _config(recorded_backbone(_entry(checkpoint, "cfg")), ours, found)
    return Network(
        layout=found,
        config=config,
        weights=ours,
        source={place: name for name, (place, _) in mapped.items()},
        left_out=[name for name in weights if name not in mapped],
        settings_known=known,
        originals=originals,
        classes=_classes(checkpoint),
    )


def _layout(weights: Mapping[str, Tensor]) -> str:
    if authors.is_authors(weights):
        return "authors"
    if any(name.startswith("backbone.") for name in weights):
        classifier = any(name.startswith("head.fc.") for name in weights)  # whose neck may have weights, too
        detector = not classifier and any(name.startswith(_DETECTORS) for name in weights)
        return "mmdet" if detector else "mmpretrain"
    return "torchvision" if torchvision_names.is_torchvision(weights) else "backbone"


def _config(recorded: dict, weights: Mapping[str, Tensor], layout: str) -> tuple[dict, bool]:
    """The backbone's config, and whether all of it is known: what weights tell, and what else is recorded of it."""
    weights = {name.removeprefix("backbone."): value for name, value in weights.items() if name.startswith("backbone.")}
    config = describe(weights, recorded.get("widen_factor"))
    if layout == "authors":
        return config | dict(ce_cfg=config.get("ce_cfg", {}) | authors.CE_CFG), True
    ce = any(map(has_ce, weights))
    kind = str(recorded.get("type")).rpartition(".")[2]
    if kind.removeprefix("CE") == config["type"].removeprefix("CE"):
        config |= untraced(recorded, ce)
    return config, not ce or kind == config["type"]


def _entry(checkpoint: dict, *names: str) -> object:
    """What is recorded in its metadata under these names; None where there is no such thing."""
    value = checkpoint.get("meta")
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _originals(checkpoint: dict) -> dict[str, Tensor]:
    """What a conversion from the authors' layout has kept; what is no such thing is passed over."""
    originals = _entry(checkpoint, "authors", "originals")
    try:
        return {name: torch.as_tensor(value, dtype=torch.float64, device="cpu") for name, value in originals.items()}
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return {}


def _classes(checkpoint: dict) -> list[str] | None:
    classes = _entry(checkpoint, "dataset_meta", "classes")
    named = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    return list(classes) if named else None
