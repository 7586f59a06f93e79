"""What a training goes on from: which checkpoint ``last_checkpoint`` means, and whether it holds what is needed.

mmengine finds out where it trips over it: with the weights already loaded, or at the first evaluation of an epoch.
"""
import os
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path

from torch import Tensor

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
    """Check that a checkpoint has all that mmengine and the hooks here read when they resume, each of its kind.

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
            found = "is missing" if value is _ABSENT else f"is {_shown(value)}"
            raise CheckpointError(
                f"{name}: no training can go on from it, as {place} {found}; expected {expected}, as in a checkpoint "
                "that mmengine saved in a training. To start from its weights alone, give it as load_from, without "
                "resume"
            )


def _shown(value: object) -> str:
    try:
        return f"{value!r:.99}"
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in a list in a list
        return f"{type(value).__name__} too large to be shown"


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and abs(value) < 2**63


def _is_count(value: object) -> bool:
    return _is_whole(value) and value >= 0


def _is_seed(value: object) -> bool:
    return value is None or (_is_count(value) and value < 2**32)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)


def _are_whole(values: object) -> bool:
    return _is_a(list)(values) and all(map(_is_whole, values))


def _are_schedules(values: object) -> bool:
    lists = values.values() if isinstance(values, dict) else [values]
    return all(isinstance(each, list) and all(map(_is_a(dict), each)) for each in lists)


def _is_a(*kinds: type | None) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kinds)


_ABSENT = object()
_HUB, _INFO = "message_hub", "message_hub.runtime_info"
_COUNT, _SEED = (_is_count, "a whole number"), (_is_seed, "a whole number below 2**32, or None")
_DICT, _STEPS = (_is_a(dict), "a dict"), (_are_whole, "a list of whole numbers")
#: Where, whether it must be there, what it may be, and that in words; what holds others stands before them.
_ENTRIES = (
    ("meta", True, *_DICT),
    ("meta.epoch", True, *_COUNT),
    ("meta.iter", True, *_COUNT),
    ("meta.seed", False, *_SEED),
    ("meta.sampler_seed", False, *_SEED),
    (_HUB, True, *_DICT),
    (f"{_HUB}.log_scalars", True, *_DICT),
    (f"{_HUB}.resumed_keys", True, *_DICT),
    (_INFO, True, *_DICT),
    (f"{_INFO}.last_ckpt", False, _is_a(str), "a path"),
    (f"{_INFO}.best_ckpt", False, _is_a(str, type(None)), "a path or None"),
    (f"{_INFO}.best_score", False, _is_number, "a number"),
    (f"{_INFO}.keep_ckpt_ids", False, *_STEPS),
    (f"{_INFO}.superseded_ckpt_ids", False, *_STEPS),
    ("state_dict", False, *_DICT),
    ("optimizer", False, *_DICT),
    ("param_schedulers", False, _are_schedules, "a list of dicts, or a dict of such lists"),
)
