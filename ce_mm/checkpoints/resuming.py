"""What a training goes on from: which checkpoint ``last_checkpoint`` means, and whether it holds what is needed.

mmengine finds out where it trips over it: with the weights already loaded, or at the first evaluation of an epoch.
"""
import os
import reprlib
from pathlib import Path

from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint

#: The file in a work folder by which mmengine finds the checkpoint to go on from.
LAST = "last_checkpoint"


def latest_checkpoint(work_dir: str, out_dir: str | None = None) -> str | None:
    """The checkpoint that is named in the file ``last_checkpoint``, or None if there is no such file.

    The name counts, and its folder is that of this run: the path in the file is from before the folder was moved, or
    from the run of which it is a copy. Only where nothing goes by that name here is the path taken as it stands.

    Args:
        work_dir: where ``last_checkpoint`` is.
        out_dir: as in the settings of mmengine's ``CheckpointHook``.

    Raises:
        CheckpointError: the file cannot be read, is empty, or names what is not there.
    """
    note = Path(work_dir, LAST)
    if not note.exists():
        return None
    way_out = "write the path of a checkpoint into it, or name one by --resume PATH"
    try:
        named = note.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{note}: cannot be read ({error}); {way_out}") from error
    if not named:
        raise CheckpointError(f"{note}: is empty; {way_out}")
    if "://" in named:
        return named
    folders = [work_dir]
    if out_dir is not None:  # to which the hook adds the name of the work folder
        folders.insert(0, os.path.join(out_dir, os.path.basename(work_dir.rstrip(os.sep))))
    for path in (*(os.path.join(folder, os.path.basename(named)) for folder in folders), named):
        if os.path.exists(path):
            return path
    raise CheckpointError(f"{note}: names {named!r:.300}, which is neither there nor in this folder; {way_out}")


def read_resumable(path: str | os.PathLike, map_location: object = "cpu") -> dict:
    """As :func:`ce_mm.checkpoints.reading.read_checkpoint`, of a checkpoint that a training is to go on from.

    Raises:
        CheckpointError: it cannot be read, or no training can go on from it.
    """
    checkpoint = read_checkpoint(path, map_location)
    check_resumable(checkpoint, path)
    return checkpoint


def check_resumable(checkpoint: dict, name: object) -> None:
    """Check that a checkpoint has what mmengine and the hooks here read when they resume, each of its kind.

    Args:
        checkpoint: its content.
        name: its path, for the error.

    Raises:
        CheckpointError: something is missing, or is no such thing as is saved there.
    """
    for place, is_needed, is_right, expected in _ENTRIES:
        value = checkpoint
        for key in place.split("."):
            value = value.get(key, _ABSENT)
        if is_needed if value is _ABSENT else not is_right(value):
            found = "is missing" if value is _ABSENT else f"is {reprlib.repr(value)}"
            raise CheckpointError(
                f"{name}: no training can go on from it, as {place} {found}; expected {expected}, as in a checkpoint "
                "that mmengine saved in a training. To start from its weights alone, give it as load_from, without "
                "resume"
            )


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(map(_is_count, values))


_ABSENT = object()
_DICT, _COUNT = (_is_dict, "a dict"), (_is_count, "a whole number of 0 or more")
_STEPS = (_are_counts, "a list of whole numbers")  # by which the hook here removes files
#: Where, whether it must be there, what it may be, and that in words; what holds others stands before them.
_ENTRIES = (
    ("meta", True, *_DICT),
    ("meta.epoch", True, *_COUNT),
    ("meta.iter", True, *_COUNT),
    ("message_hub", True, *_DICT),
    ("message_hub.log_scalars", True, *_DICT),
    ("message_hub.resumed_keys", True, *_DICT),
    ("message_hub.runtime_info", True, *_DICT),
    ("message_hub.runtime_info.keep_ckpt_ids", False, *_STEPS),
    ("message_hub.runtime_info.superseded_ckpt_ids", False, *_STEPS),
    ("state_dict", False, *_DICT),
    ("optimizer", False, *_DICT),
)
