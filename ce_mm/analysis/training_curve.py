"""How a training went: its loss, and the AP of each validation.

Each run, resumed ones too, leaves a log of mmengine in a folder of its own, ``<time>/vis_data/scalars.json``. A run
that goes on from an earlier checkpoint, or starts afresh, supersedes what earlier runs logged from its first step on.
"""

import json
import math
from pathlib import Path
from typing import Any

from ce_mm.analysis import check_picture_path, panels, save_figure, tidy

CURVES = {"coco/bbox_mAP": ("box AP", "C0"), "coco/segm_mAP": ("mask AP", "C1")}


def plot_training_curve(work_dir: Path, out: Path) -> None:
    """Draw the loss and its parts (logarithmic), and box and mask AP if there was a validation.

    Raises:
        ValueError, FileNotFoundError: ``out`` cannot be written, or as `read_scalars`.
    """
    check_picture_path(out)
    train, val = read_scalars(work_dir)
    curves = {key: [(row["iteration"], row[key]) for row in val if _value(row, key) >= 0] for key in CURVES}
    curves = {key: points for key, points in curves.items() if points}
    figure, axes = panels(2 if curves else 1)
    _draw_loss(axes[0], train)
    if curves:
        _draw_metrics(axes[1], curves)
        axes[1].set_xlim(axes[0].get_xlim())
    for axis in axes:
        tidy(axis)
    save_figure(figure, out)


def read_scalars(work_dir: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read the logs of all runs in a work dir.

    Returns:
        The rows of training, with ``loss`` and its parts, and those of validation, with metrics such as
        ``coco/bbox_mAP``: what mmengine wrote, and by rising ``iteration`` (counted from 1). Since mmengine counts
        validations in epochs or in iterations, that is at least the iteration of the training row before.

    Raises:
        FileNotFoundError: no log there, or none with a training row.
        ValueError: a log that is not one JSON object with a step a line. A last line that breaks off, as in a killed
            run, is left out.
    """
    train, val = [], []
    # The folders are named by the time of their run.
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        new_train, new_val = _read_run(path)
        if new_train:
            first = new_train[0]["iteration"]
            train = [row for row in train if row["iteration"] < first] + new_train
            val = [row for row in val if row["iteration"] < first] + new_val
    if not train:
        raise FileNotFoundError(
            f"{work_dir}: no training log; expected a work dir of mmengine with a row of training in "
            "*/vis_data/scalars.json (the first is written after as many iterations as the logger's interval)"
        )
    return train, val


def _read_run(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    train, val, last = [], [], 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            expected = "expected a JSON object with step"
            raise ValueError(f"{path}, line {number}: {expected}, not {line[:80]!r}") from error
        if "loss" in row:
            last = step
            train.append({**row, "iteration": step})
        else:
            val.append({**row, "iteration": max(step, last)})
    return train, val


def _value(row: dict[str, Any], key: str) -> float:
    """A number of a row; NaN where there is none, so that nothing is drawn there."""
    return row[key] if isinstance(row.get(key), int | float) else math.nan


def _draw_loss(axis, rows: list[dict[str, Any]]) -> None:
    iterations = [row["iteration"] for row in rows]
    marker = "o" if len(rows) == 1 else None  # a line of one point is none
    parts = dict.fromkeys(key for row in rows for key in row if key.startswith("loss") and key != "loss")
    for index, key in enumerate(parts):
        label = key.removeprefix("loss_").replace("_", " ")
        colour = f"C{(index + 2) % 10}"
        values = [_value(row, key) for row in rows]
        axis.plot(iterations, values, color=colour, lw=0.9, alpha=0.75, marker=marker, label=label)
    axis.plot(iterations, [_value(row, "loss") for row in rows], color="black", lw=1.8, marker=marker, label="loss")
    axis.set(yscale="log", title="training loss", xlabel="iteration", ylabel="loss")


def _draw_metrics(axis, curves: dict[str, list[tuple[int, float]]]) -> None:
    for key, points in curves.items():
        name, colour = CURVES[key]
        label = f"{name}  {points[-1][1]:.3f}"
        axis.plot(*zip(*points, strict=True), color=colour, lw=1.8, marker="o", ms=3.5, label=label)
    axis.set(title="validation (legend: last values)", xlabel="iteration", ylabel="average precision", ylim=(0, 1))
