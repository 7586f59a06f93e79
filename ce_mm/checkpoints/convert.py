"""Checkpoints from everywhere to everyone: read, named anew, tried in the network that they are for, and written.

    source → the names of an mmpretrain classifier → the network → the names of the target → weights and config
"""
import hashlib
import os
from pathlib import Path
from pprint import pformat

from torch import Tensor

from ce_mm.checkpoints import authors, publishing
from ce_mm.checkpoints.fitting import Fitted, fit
from ce_mm.checkpoints.layouts import Network, read_network
from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint
from ce_mm.checkpoints.report import Report
from ce_mm.choices import LAYOUTS, TARGETS
from ce_mm.files import DestinationError, check_folder
from ce_mm.version import __version__


def convert(
    source: Path,
    destination: Path,
    layout: str = "auto",
    target: str = "backbone",
    publish: bool = False,
    dry_run: bool = False,
) -> Report:
    """Convert a checkpoint.

    Args:
        source: a .pth file, or any other that torch.save wrote, or a .safetensors file; it is only read.
        destination: a new file, its suffix .pth or .safetensors; its folder is made. The config that fits is written
            beside it, with the suffix .py. Both are there whole, or neither is; where a conversion was killed, the same
            one again finishes it.
        layout: one of ``LAYOUTS``; any but auto is what the source must be.
        target: ``backbone`` for the ``init_cfg`` of a detector, ``classifier`` for mmpretrain, ``authors`` for the code
            of the CE authors, which has no config.
        publish: put the first eight digits of the hash into the names.
        dry_run: do everything but write.

    Raises:
        CheckpointError: layout or target is none; the source cannot be read, is of no layout or network known here, or
            does not fit its network in names, shapes, types or values. Nothing is written then.
        DestinationError: the destination has another suffix, is there, or cannot be written. Nothing is left there.
    """
    source, destination = Path(source), Path(destination)
    _check_arguments(source, destination, layout, target, publish)
    network, fitted, weights, names = _renamed(source, layout, target)
    try:
        content = publishing.serialise(weights, _meta(network, fitted, target), destination.suffix)
        digest = hashlib.sha256(content).hexdigest()
        if publish:
            destination = publishing.published(destination, digest)
        files = {destination: content}
        if target != "authors":
            files[destination.with_suffix(".py")] = _config_text(fitted.model, destination.name).encode()
        for path, content in files.items():
            _check_place(path, source)
            if os.path.lexists(path) and not publishing.is_there(path, content):
                raise DestinationError(f"{path} exists already; remove it, or name another destination")
        if not dry_run:
            publishing.write_all(files)
    except OSError as error:
        reason = error.strerror or error
        raise DestinationError(f"{destination}: it cannot be written ({reason}); nothing was left there") from error

    mapped = {old: names[ours] for old, ours in fitted.mapped.items()}
    known = {*mapped.values(), *network.originals}
    unused = [*network.left_out, *(name for name in network.source.values() if name not in mapped)]
    return Report(
        source=source,
        network=network,
        mapped=mapped,
        initialised=[name for name in weights if name not in known],
        kept=[name for name in unused if name in network.originals],
        left_out=[name for name in unused if name not in network.originals],
        sha256=digest,
        files=tuple(files),
        dry_run=dry_run,
    )


def _renamed(source: Path, layout: str, target: str) -> tuple[Network, Fitted, dict[str, Tensor], dict[str, str]]:
    """What was read, that in its network, the weights by the names of the target, and name in the model -> there."""
    checkpoint = read_checkpoint(source)
    try:
        network = read_network(checkpoint, layout)
        fitted = fit(network, classifier=target != "backbone")
        if target == "authors":
            return network, fitted, *authors.to_authors(fitted.weights, network.config, network.originals)
        return network, fitted, fitted.weights, {name: name for name in fitted.weights}
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _check_arguments(source: Path, destination: Path, layout: str, target: str, publish: bool) -> None:
    for name, value, known in (("layout", layout, LAYOUTS), ("target", target, TARGETS)):
        if value not in known:
            raise CheckpointError(f"the {name} {value!r} is unknown; expected one of {', '.join(known)}")
    if destination.suffix not in publishing.SUFFIXES:
        raise DestinationError(f"{destination}: expected a name that ends with {' or '.join(publishing.SUFFIXES)}")
    if not publish:
        _check_place(destination, source)


def _check_place(path: Path, source: Path) -> None:
    """That it is no input and no folder, and may be written; a folder that is missing will be made."""
    place = Path(os.path.realpath(path))
    check_folder(place.parent, [place.name], [source])


def _meta(network: Network, fitted: Fitted, target: str) -> dict:
    """What is written beside the weights, and is understood when the file is converted again."""
    if target == "authors":
        return {}
    meta = dict(ce_mm_version=__version__, cfg=_assignment("model", fitted.model))
    if network.originals:
        meta["authors"] = dict(originals={name: value.tolist() for name, value in network.originals.items()})
    if network.classes and target == "classifier":
        meta["dataset_meta"] = dict(classes=network.classes)
    return meta


def _config_text(model: dict, weights: str) -> str:
    """A config that builds the network of these weights, wherever ce_mm is installed."""
    lines = [f"# The network of the weights in {ascii(weights)[1:-1]}."]
    lines.append(_assignment("custom_imports", dict(imports=["ce_mm"], allow_failed_imports=False)))
    if "type" in model:
        lines.append(_assignment("default_scope", "mmpretrain"))
    return "\n".join([*lines, _assignment("model", model), ""])


def _assignment(name: str, value: object) -> str:
    """A line of a config. Not as mmengine writes it, which does not escape everything, and whoever reads it runs it."""
    return f"{name} = {pformat(value, width=112, sort_dicts=False)}"
