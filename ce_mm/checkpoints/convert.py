"""Checkpoints from everywhere to everyone: read, named anew, tried in the network that they are for, and written.

    source → the names of an mmpretrain classifier → the network → the names of the target → weights and config
"""
import os
from pathlib import Path

from mmengine.config import Config
from torch import Tensor

from ce_mm.checkpoints import authors, publishing
from ce_mm.checkpoints.fitting import Fitted, fit
from ce_mm.checkpoints.layouts import LAYOUTS, Network, read_network
from ce_mm.checkpoints.reading import CheckpointError
from ce_mm.checkpoints.recorded import holds_only
from ce_mm.checkpoints.report import Report
from ce_mm.files import DestinationError, check_folder
from ce_mm.version import __version__

TARGETS = ("backbone", "classifier", "authors")


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
        CheckpointError: an argument is wrong; the source cannot be read, is of no layout or network known here, or
            does not fit its network in names, shapes, types or values; the destination cannot be written. Nothing is
            written then.
    """
    source, destination = Path(source), Path(destination)
    _check_arguments(source, destination, layout, target, publish)
    try:
        network = read_network(publishing.read(source), layout)
        fitted = fit(network, classifier=target != "backbone")
        weights, names = (
            authors.to_authors(fitted.weights, network.config, network.originals, network.order)
            if target == "authors"
            else (fitted.weights, {name: name for name in fitted.weights})
        )
    except CheckpointError as error:
        if str(error).startswith(f"{source}: "):
            raise
        raise CheckpointError(f"{source}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{source}: it cannot be read ({error.strerror or error})") from error

    try:
        meta = {} if target == "authors" else _meta(network, fitted, target)
        content = publishing.serialise(weights, meta, destination.suffix)
        digest = publishing.sha256(content)
        if publish:
            destination = publishing.published(destination, digest)
        files = {destination: content}
        if target != "authors":
            files[destination.with_suffix(".py")] = _config_text(fitted.model, destination.name).encode()
        for path, content in files.items():
            _check_place(path, source)
            if os.path.lexists(path) and not publishing.is_there(path, content):
                raise CheckpointError(f"{path} exists already; remove it, or name another destination")
        if not dry_run:
            publishing.write_all(files)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{destination}: it cannot be written ({reason}); nothing was left there") from error
    return _report(network, fitted, weights, names, source, target, digest, tuple(files), dry_run)


def _check_arguments(source: Path, destination: Path, layout: str, target: str, publish: bool) -> None:
    for name, value, known in (("layout", layout, LAYOUTS), ("target", target, TARGETS)):
        if value not in known:
            raise CheckpointError(f"the {name} {value!r} is unknown; expected one of {', '.join(known)}")
    if destination.suffix not in publishing.SUFFIXES:
        raise CheckpointError(f"{destination}: expected a name that ends with {' or '.join(publishing.SUFFIXES)}")
    if not publish:
        _check_place(destination, source)


def _check_place(path: Path, source: Path) -> None:
    """That it is no input and no folder, and may be written; a folder that is missing will be made."""
    place = Path(os.path.realpath(path))
    try:
        check_folder(place.parent, [place.name], [source])
    except DestinationError as error:
        raise CheckpointError(str(error)) from None


def _meta(network: Network, fitted: Fitted, target: str) -> dict:
    """What is written beside the weights, and is understood when the file is converted again."""
    meta = dict(ce_mm_version=__version__, cfg=_as_text(dict(model=fitted.model)))
    if network.originals:
        meta["authors"] = dict(originals=network.originals, order=network.order)
    if network.classes and target == "classifier":
        meta["dataset_meta"] = dict(classes=network.classes)
    return meta


def _config_text(model: dict, weights: str) -> str:
    """A config that builds the network of these weights, wherever ce_mm is installed."""
    config = dict(custom_imports=dict(imports=["ce_mm"], allow_failed_imports=False))
    if "type" in model:
        config["default_scope"] = "mmpretrain"
    return f"# The network of the weights in {ascii(weights)[1:-1]}.\n{_as_text(config | dict(model=model))}"


def _as_text(config: dict) -> str:
    text = Config(config).pretty_text
    if not holds_only(text, config):  # mmengine does not escape everything, and whoever reads the text runs it
        raise CheckpointError(f"{config!r} cannot be written as the text of a config; use plain values in it")
    return text


def _report(
    network: Network,
    fitted: Fitted,
    weights: dict[str, Tensor],
    names: dict[str, str],
    source: Path,
    target: str,
    digest: str,
    files: tuple[Path, ...],
    dry_run: bool,
) -> Report:
    """``names``: name in the file written -> name in the model."""
    written = {ours: name for name, ours in names.items()}
    mapped = {old: written[ours] for old, ours in fitted.mapped.items()}
    initialised = [written[ours] for ours in fitted.initialised]
    not_ours = [name for name in weights if name not in names]  # the authors' unused running means
    return Report(
        source=source,
        layout=network.layout,
        target=target,
        config=network.config,
        mapped=mapped,
        initialised=initialised + [name for name in not_ours if name not in network.originals],
        kept=[name for name in network.left_out if name in network.originals],
        left_out=[name for name in network.left_out if name not in network.originals]
        + [name for name in network.source.values() if name not in mapped],
        settings_known=network.settings_known,
        sha256=digest,
        files=files,
        dry_run=dry_run,
    )
