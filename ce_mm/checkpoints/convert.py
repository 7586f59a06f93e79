"""From a trained classifier to what a detector starts from: the backbone alone, under its own names."""
from pathlib import Path

import torch

from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint
from ce_mm.files import replacing
from ce_mm.version import __version__

PREFIX = "backbone."


def extract_backbone(source: Path, destination: Path) -> list[str]:
    """Write the backbone of an mmpretrain CE classifier as a file for ``init_cfg=dict(type='Pretrained', ...)``.

    Args:
        source: a checkpoint that mmpretrain's training saved; optimizer state, logs and the head are left behind.
        destination: a new file; its folder is made. It appears whole or not at all.

    Returns:
        The names of the tensors written.

    Raises:
        CheckpointError: the source is no such checkpoint, or the destination exists.
    """
    source, destination = Path(source), Path(destination)
    if destination.exists():
        raise CheckpointError(f"{destination} exists already; remove it, or name another destination")
    checkpoint = read_checkpoint(source)
    state = checkpoint.get("state_dict", checkpoint)
    names = {name.removeprefix("module."): name for name in state}
    backbone = {name.removeprefix(PREFIX): state[old] for name, old in names.items() if name.startswith(PREFIX)}
    if not backbone:
        raise CheckpointError(
            f"{source} holds no backbone: none of its {len(state)} names starts with 'backbone.' (the first is "
            f"{next(iter(state), None)!r}); give a checkpoint of a classifier that mmpretrain trained"
        )
    if not any(name.endswith((".mix", ".bd.running_whitening", ".ir.running_inv_std_scale")) for name in backbone):
        raise CheckpointError(
            f"{source} holds a backbone without Channel Equilibrium (no '.mix', '.bd.' or '.ir.' among its names); a "
            "detector with a plain backbone can load it as it is"
        )
    write_checkpoint(dict(meta=dict(ce_mm_version=__version__, source=source.name), state_dict=backbone), destination)
    return list(backbone)


def write_checkpoint(checkpoint: dict, destination: Path) -> None:
    """``torch.save`` through a temporary file beside ``destination``, so that no half-written file is left there."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with replacing(destination) as unfinished:
        torch.save(checkpoint, unfinished)
