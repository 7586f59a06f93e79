"""From a config and a checkpoint to a file for another runtime, checked against PyTorch before it is there."""
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from ce_mm.export.check import SIZES, largest_difference, random_pictures, run_alone
from ce_mm.export.formats import FORMATS
from ce_mm.export.runtimes import first_line
from ce_mm.export.subject import Subject
from ce_mm.files import check_destination, placing, replacing
from ce_mm.launching.config import read_config
from ce_mm.launching.network import load_network

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
    if kind not in FORMATS:
        raise ValueError(f"there is no format {kind!r}; expected one of {', '.join(FORMATS)}")
    file_format = FORMATS[kind]
    if out.suffix != file_format.suffix:
        raise ValueError(f"{out}: expected the name of a file to write, ending in {file_format.suffix} for {kind}")
    check_destination(out, [Path(config), Path(checkpoint).expanduser()], overwrite)
    file_format.require(kind)
    cfg = read_config(config)
    model, recorded = load_network(cfg, checkpoint)
    subject = Subject(model, cfg, backbone)
    pictures = list(random_pictures(subject.channels))
    expected = [subject.expected(batch) for batch in pictures]
    metadata = subject.metadata() | ({} if backbone else _classes(recorded, expected[0][1].shape[1]))
    with (replacing if overwrite else placing)(out) as unfinished:
        try:
            example = torch.zeros(2, subject.channels, *SIZES[1])
            with torch.no_grad():
                file_format.write(subject.module(), example, list(subject.outputs), metadata, unfinished)
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


def _classes(recorded: dict, count: int) -> dict[str, str]:
    """The names of the classes, where there is one for each."""
    names = recorded.get("classes")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return {}
    return dict(classes=json.dumps(names, ensure_ascii=False)) if len(names) == count else {}
