"""How a training went, from the logs that mmengine leaves in a work dir: the loss, and the AP of each validation.

Each run, resumed ones too, logs to a folder of its own, ``<time>/vis_data/scalars.json``. A run that goes on from an
earlier checkpoint, or starts afresh, supersedes what earlier runs logged from its first step on.
"""

import contextlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from ce_mm.analysis import check_picture_path, save_figure

_CURVES = {
    "coco/bbox_mAP": ("box AP", "C0", "-"),
    "coco/segm_mAP": ("mask AP", "C1", "-"),
    "coco/bbox_mAP_50": ("box AP50", "C0", ":"),
    "coco/segm_mAP_50": ("mask AP50", "C1", ":"),
}


@dataclass
class Scalars:
    """Rows of the log, by rising ``iteration`` (counted from 1), which each row has beside what mmengine wrote.

    ``train`` rows have ``loss``, its parts and ``lr``; ``val`` rows have metrics such as ``coco/bbox_mAP``, at the
    training row before them, since mmengine counts validations in epochs or in iterations.
    """

    train: list[dict[str, float]] = field(default_factory=list)
    val: list[dict[str, float]] = field(default_factory=list)


def read_scalars(work_dir: str | Path) -> Scalars:
    """Read the logs of all runs in a work dir.

    Raises:
        FileNotFoundError: no log there, or none with a training row.
        ValueError: a log that is not one JSON object with a step a line. A last line that breaks off, as in a killed
            run, is left out, and so is in each row what is no number.
    """
    scalars = Scalars()
    # The folders are named by the time of their run.
    for path in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        run = _read_run(path)
        if run.train:
            first = run.train[0]["iteration"]
            scalars.train = [row for row in scalars.train if row["iteration"] < first] + run.train
            scalars.val = [row for row in scalars.val if row["iteration"] < first] + run.val
    if not scalars.train:
        raise FileNotFoundError(
            f"{work_dir}: no training log; expected a work dir of mmengine with a row of training in "
            "*/vis_data/scalars.json (the first is written after as many iterations as the logger's interval)"
        )
    return scalars


def _read_run(path: Path) -> Scalars:
    run = Scalars()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        row = _read_row(line)
        if row is None:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: expected a JSON object with step, not {line[:80]!r}")
        step = int(row["step"])
        if "loss" in row:
            run.train.append({**row, "iteration": step})
        else:
            # Where mmengine counts in epochs, step is the smaller of the two.
            last = run.train[-1]["iteration"] if run.train else 0
            run.val.append({**row, "iteration": max(step, last)})
    return run


def _read_row(line: str) -> dict[str, float] | None:
    """The numbers of a row; None where the line is none, or has no whole number as step."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    numbers = {}
    for key, value in row.items():
        if isinstance(value, int | float):
            with contextlib.suppress(OverflowError):
                numbers[key] = float(value)
    return numbers if "step" in numbers else None


def plot_training_curve(work_dir: str | Path, out: str | Path, title: str | None = None) -> None:
    """Draw the loss and its parts (logarithmic), the learning rate, and box and mask AP if there was a validation.

    Args:
        work_dir: see `read_scalars`, which also says what is raised.
        out: the picture to write.
        title: a line above the picture.

    Raises:
        ValueError: also for an ``out`` that cannot be written.
    """
    from matplotlib.figure import Figure

    out = Path(out)
    check_picture_path(out)
    scalars = read_scalars(work_dir)
    curves = [key for key in _CURVES if any(_value(row, key) >= 0 for row in scalars.val)]
    panels = 2 if curves else 1
    figure = Figure(figsize=(6.4 * panels, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_loss(axes[0], scalars.train)
    if curves:
        _draw_metrics(axes[1], scalars.val, curves)
        axes[1].set_xlim(axes[0].get_xlim())
    if title:
        figure.suptitle(title, parse_math=False)
    save_figure(figure, out)


def _value(row: dict[str, float], key: str) -> float:
    """A number of a row; NaN where there is none, so that nothing is drawn there."""
    return row.get(key, math.nan)


def _draw_loss(axis, rows: list[dict[str, float]]) -> None:
    iterations = [row["iteration"] for row in rows]
    parts = dict.fromkeys(key for row in rows for key in row if key.startswith("loss") and key != "loss")
    marker = "o" if len(rows) == 1 else None
    for index, key in enumerate(parts):
        label = key.removeprefix("loss_").replace("_", " ")
        colour = f"C{(index + 2) % 10}"
        axis.plot(iterations, [_value(row, key) for row in rows], color=colour, lw=0.9, alpha=0.75, label=label)
    axis.plot(iterations, [row["loss"] for row in rows], color="black", lw=1.8, marker=marker, label="loss")
    axis.set(yscale="log", title="training loss", xlabel="iteration", ylabel="loss")
    _tidy(axis)
    if any("lr" in row for row in rows):
        rate = axis.twinx()
        rates = [_value(row, "lr") for row in rows]
        rate.fill_between(iterations, rates, color="grey", alpha=0.13, lw=0)
        rate.set(ylabel="learning rate (grey)", ylim=(0, None))
        rate.spines["top"].set_visible(False)
        # The curves lie above the area.
        axis.set_zorder(rate.get_zorder() + 1)
        axis.patch.set_visible(False)


def _draw_metrics(axis, rows: list[dict[str, float]], curves: list[str]) -> None:
    for key in curves:
        name, colour, style = _CURVES[key]
        points = [(row["iteration"], row[key]) for row in rows if _value(row, key) >= 0]
        label = f"{name}  {points[-1][1]:.3f}"
        axis.plot(*zip(*points, strict=True), color=colour, ls=style, lw=1.8, marker="o", ms=3.5, label=label)
    axis.set(title="validation (legend: last values)", xlabel="iteration", ylabel="average precision", ylim=(0, 1))
    _tidy(axis)


def _tidy(axis) -> None:
    axis.grid(which="major", color="0.88", lw=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize="small")
