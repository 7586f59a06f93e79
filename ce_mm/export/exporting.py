"""From a config and a checkpoint to a file for another runtime, checked against PyTorch before it is there."""
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.runner import CheckpointLoader
from torch import nn

from ce_mm.analysis.instruments.source import Source
from ce_mm.export import subject
from ce_mm.export.check import SIZES, largest_difference, random_pictures, run_alone
from ce_mm.export.formats import FORMATS, Format
from ce_mm.export.runtimes import first_line
from ce_mm.files import check_destination, placing, replacing
from ce_mm.launching.config import read_config

#: The largest relative difference that a file may have.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Export:
    """What was written."""

    path: Path
    metadata: dict[str, str]
    #: See :func:`~ce_mm.export.check.largest_difference`.
    difference: float


def export(
    config: str, checkpoint: str, kind: str, out: Path, backbone: bool = False, overwrite: bool = False
) -> Export:
    """Write a network for inference with CE folded, for any batch and picture size.

    The file takes RGB pictures, float32 from 0 to 255, and normalises them itself. Before it takes its name it runs
    :data:`~ce_mm.export.check.INPUTS` random batches in a process of its own, without ce_mm and OpenMMLab.

    Args:
        config: config file, with or without CE in it, of a classifier; with ``backbone`` of a detector too.
        checkpoint: weights that fit the whole model.
        kind: one of :data:`~ce_mm.export.formats.FORMATS`.
        out: file to write.
        backbone: only the backbone, to its maps.
        overwrite: whether a file that is there may be replaced.

    Raises:
        ValueError: config, checkpoint, format or ``out`` cannot be used, the network cannot be exported, or the file
            computes something else than the model. Nothing is written then.
        FileExistsError: a file has come to ``out`` meanwhile.
        MissingRequirementError: the format needs a package that is not installed.
    """
    file_format = _format(kind, out)
    check_destination(out, [Path(config), Path(checkpoint).expanduser()], overwrite)
    file_format.require(kind)
    cfg, model = read_config(config), Source(config, checkpoint).load_model()
    chosen = subject.backbone(model, cfg) if backbone else subject.classifier(model, cfg)
    metadata = chosen.metadata | ({} if backbone else _classes(checkpoint, model.head))
    pictures = list(random_pictures(chosen.channels))
    expected = [subject.run(chosen.reference, batch) for batch in pictures]
    with (replacing if overwrite else placing)(out) as unfinished:
        try:
            example = torch.zeros(2, chosen.channels, *SIZES[1])
            with torch.no_grad():
                file_format.write(chosen.module, example, list(chosen.outputs), metadata, unfinished)
        except OSError:  # a full disk says so itself
            raise
        except Exception as error:  # exporters raise anything about what they do not know
            raise ValueError(
                f"the network cannot be exported as {kind} (it has to compute with operators that the format has): "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        difference = largest_difference(run_alone(kind, unfinished, pictures), expected)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"exported as {kind}, the network differs from {config} by {difference:.1e} of the largest output; "
                f"expected at most {TOLERANCE:.0e}; nothing was written"
            )
    return Export(out, metadata, difference)


def _format(kind: str, out: Path) -> Format:
    """The format, if there is one and ``out`` is a name for it."""
    if kind not in FORMATS:
        raise ValueError(f"there is no format {kind!r}; expected one of {', '.join(FORMATS)}")
    file_format = FORMATS[kind]
    if out.suffix != file_format.suffix:
        raise ValueError(f"{out}: expected the name of a file to write, ending in {file_format.suffix} for {kind}")
    return file_format


def _classes(checkpoint: str, head: nn.Module) -> dict[str, str]:
    """The names of the classes, where the checkpoint has them."""
    recorded = CheckpointLoader.load_checkpoint(checkpoint, map_location="cpu", logger="silent")
    for name in ("meta", "dataset_meta", "classes"):
        recorded = recorded.get(name) if isinstance(recorded, dict) else None
    if not isinstance(recorded, list | tuple) or not all(isinstance(name, str) for name in recorded):
        return {}
    if len(recorded) != getattr(head, "num_classes", None):
        return {}
    return dict(classes=json.dumps(recorded, ensure_ascii=False))
