"""The training curve: rows of all runs in the order of training, and a picture of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ce_mm.analysis.training_curve import plot_training_curve, read_scalars
from ce_mm.commands.plot import main


def train_row(step: int, loss: float, epoch: int = 1) -> dict:
    return {"lr": 0.02, "loss": loss, "loss_cls": loss / 2, "time": 0.1, "epoch": epoch, "iter": step, "step": step}


def val_row(step: int, box_ap: float) -> dict:
    return {"coco/bbox_mAP": box_ap, "coco/segm_mAP": box_ap - 0.1, "coco/bbox_mAP_l": -1.0, "time": 0.2, "step": step}


def write_run(work_dir: Path, name: str, rows: list[dict], broken_end: str = "") -> None:
    folder = work_dir / name / "vis_data"
    folder.mkdir(parents=True)
    (folder / "scalars.json").write_text("".join(json.dumps(row) + "\n" for row in rows) + broken_end)


def curve(work_dir: Path) -> tuple[list, list]:
    train, val = read_scalars(work_dir)
    losses = [(row["iteration"], row["loss"]) for row in train]
    return losses, [(row["iteration"], row["coco/bbox_mAP"]) for row in val]


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_validation_in_epochs_is_placed_at_the_training_row_before_it(tmp_path):
    write_run(
        tmp_path,
        "20260101_100000",
        [train_row(50, 2.0), train_row(100, 1.5), val_row(1, 0.2), train_row(150, 1.2, epoch=2), val_row(2, 0.3)],
    )
    assert curve(tmp_path) == ([(50, 2.0), (100, 1.5), (150, 1.2)], [(100, 0.2), (150, 0.3)])


def test_validation_in_iterations_stays_where_it_was(tmp_path):
    write_run(tmp_path, "20260101_100000", [val_row(20, 0.1), train_row(50, 2.0), val_row(60, 0.2), val_row(80, 0.3)])
    assert curve(tmp_path)[1] == [(20, 0.1), (60, 0.2), (80, 0.3)]


def test_a_resumed_run_supersedes_what_was_logged_from_its_first_step_on(tmp_path):
    write_run(tmp_path, "20260102_090000", [train_row(150, 1.0), val_row(2, 0.4), train_row(200, 0.9)])
    kept = [train_row(50, 2.0), train_row(100, 1.5), val_row(1, 0.2)]
    superseded = [train_row(150, 7.0), val_row(2, 0.0), train_row(170, 8.0)]
    write_run(tmp_path, "20260101_100000", kept + superseded)
    assert curve(tmp_path) == ([(50, 2.0), (100, 1.5), (150, 1.0), (200, 0.9)], [(100, 0.2), (150, 0.4)])


def test_a_run_that_logged_nothing_supersedes_nothing(tmp_path):
    write_run(tmp_path, "20260101_100000", [train_row(50, 2.0), val_row(1, 0.2)])
    write_run(tmp_path, "20260102_100000", [])
    write_run(tmp_path, "20260103_100000", [val_row(0, 0.0)])
    assert curve(tmp_path) == ([(50, 2.0)], [(50, 0.2)])


def test_a_line_cut_off_at_the_end_is_left_out(tmp_path):
    write_run(tmp_path, "20260101_100000", [train_row(50, 2.0)], broken_end='{"lr": 0.02, "lo')
    assert curve(tmp_path) == ([(50, 2.0)], [])


NOT_ROWS = [
    "not json", "[1, 2]", '{"loss": 1.0}', '{"step": "a", "loss": 1.0}', '{"step": NaN}', '{"step": null}', "\0",
]  # fmt: skip


@pytest.mark.parametrize("line", NOT_ROWS)
def test_another_line_that_is_no_row_is_named(tmp_path, line):
    write_run(tmp_path, "20260101_100000", [train_row(50, 2.0)], broken_end=f"{line}\n{json.dumps(train_row(60, 1.0))}")
    with pytest.raises(ValueError, match=r"scalars\.json, line 2: expected a JSON object with step"):
        read_scalars(tmp_path)


def test_a_log_that_is_no_text_is_named(tmp_path):
    write_run(tmp_path, "20260101_100000", [])
    (tmp_path / "20260101_100000/vis_data/scalars.json").write_bytes(b"\xff\xfe\n{}\n")
    with pytest.raises(ValueError, match=r"scalars\.json, line 1: expected a JSON object with step"):
        read_scalars(tmp_path)


@pytest.mark.parametrize("rows", [None, [], [val_row(0, 0.1)]])
def test_a_work_dir_without_training_is_an_error_that_says_what_was_expected(tmp_path, rows):
    if rows is not None:
        write_run(tmp_path, "20260101_100000", rows)
    with pytest.raises(FileNotFoundError, match=r"no training log; expected a work dir of mmengine"):
        plot_training_curve(tmp_path, tmp_path / "curve.png")
    assert not list(tmp_path.glob("*.png*"))


def test_a_log_written_by_mmengine_is_read(tmp_path):
    pytest.importorskip("mmengine")
    import torch
    from mmengine.evaluator import BaseMetric
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, mode="tensor"):
            return {"loss_a": self.weight.sum() ** 2, "loss_b": self.weight.sum() * 0 + 3} if mode == "loss" else [x]

    class Metric(BaseMetric):
        default_prefix = "coco"

        def process(self, data_batch, data_samples):
            self.results.append(1)

        def compute_metrics(self, results):
            return {"bbox_mAP": 0.25, "segm_mAP": 0.125}

    def loader():
        return torch.utils.data.DataLoader([{"x": torch.ones(1)} for _ in range(6)], batch_size=2)

    Runner(
        model=Model(),
        work_dir=str(tmp_path),
        train_dataloader=loader(),
        val_dataloader=loader(),
        train_cfg={"by_epoch": True, "max_epochs": 2},
        val_cfg={},
        val_evaluator=[Metric()],
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
        default_hooks={"logger": {"type": "LoggerHook", "interval": 1}, "checkpoint": None},
        experiment_name="training_curve",
        log_level="WARNING",
    ).train()

    train, val = read_scalars(tmp_path)
    assert [row["iteration"] for row in train] == [1, 2, 3, 4, 5, 6]
    assert train[0]["loss"] == pytest.approx(4.0)
    assert {"loss_a", "loss_b", "lr"} <= set(train[0])
    assert [(row["iteration"], row["coco/bbox_mAP"], row["coco/segm_mAP"]) for row in val] == [
        (3, 0.25, 0.125),
        (6, 0.25, 0.125),
    ]


def test_the_picture_has_a_second_panel_once_there_was_a_validation(tmp_path):
    write_run(tmp_path / "a", "1", [train_row(50, 2.0), train_row(100, 1.5)])
    write_run(tmp_path / "b", "1", [train_row(50, 2.0), train_row(100, 1.5), val_row(1, 0.2)])
    for name in "ab":
        plot_training_curve(tmp_path / name, tmp_path / f"{name}.png")
    assert picture(tmp_path / "b.png").shape[1] == 2 * picture(tmp_path / "a.png").shape[1]


def test_the_picture_shows_loss_and_ap(tmp_path):
    seen = []
    for number, (loss, ap) in enumerate([(2.0, 0.2), (2.5, 0.2), (2.0, 0.4)]):
        write_run(tmp_path / str(number), "1", [train_row(50, 3.0), train_row(100, loss), val_row(1, ap)])
        plot_training_curve(tmp_path / str(number), tmp_path / "curve.png")
        seen.append(picture(tmp_path / "curve.png").tobytes())
    assert len(set(seen)) == 3


def test_losses_that_are_zero_or_not_finite_are_no_obstacle(tmp_path):
    write_run(tmp_path, "1", [train_row(50 * i, loss) for i, loss in enumerate([0.0, np.nan, 2.0, np.inf], 1)])
    plot_training_curve(tmp_path, tmp_path / "curve.png")
    assert picture(tmp_path / "curve.png").size


@pytest.mark.parametrize("value", ["text", None, [1]], ids=["text", "null", "list"])
def test_values_that_are_no_numbers_are_not_drawn(tmp_path, value):
    of_map = val_row(1, 0.2) | {"coco/segm_mAP": value}
    rows = [train_row(50, 2.0), train_row(60, 1.0) | dict(lr=value, loss_cls=value), of_map]
    write_run(tmp_path, "1", rows)
    assert curve(tmp_path) == ([(50, 2.0), (60, 1.0)], [(60, 0.2)])
    plot_training_curve(tmp_path, tmp_path / "curve.png")
    assert picture(tmp_path / "curve.png").size


@pytest.mark.parametrize("name", ["curve.pdf", "missing/curve.png", "folder.png"])
def test_a_name_that_cannot_be_written_is_refused_at_once(tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"expected the name of a picture|is a folder|make it first"):
        plot_training_curve(tmp_path / "no work dir either", tmp_path / name)


def test_a_failing_write_leaves_the_older_picture_and_nothing_else(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def savefig(self, path, **kwargs):
        Path(path).write_bytes(b"half a picture")
        raise OSError("disk full")

    write_run(tmp_path / "run", "1", [train_row(50, 2.0)])
    (tmp_path / "curve.png").write_bytes(b"older")
    monkeypatch.setattr(Figure, "savefig", savefig)
    with pytest.raises(OSError, match="disk full"):
        plot_training_curve(tmp_path / "run", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes() == b"older"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "curve.png"}


@pytest.fixture
def run_tool(monkeypatch):
    def run(*args: object) -> int:
        monkeypatch.setattr("sys.argv", ["ce_mm plot", *map(str, args)])
        return main()

    return run


def test_the_tool_draws_what_the_function_draws(tmp_path, run_tool):
    write_run(tmp_path / "run", "1", [train_row(50, 2.0), val_row(1, 0.2)])
    assert run_tool(tmp_path / "run", "--out", tmp_path / "tool.png") == 0
    plot_training_curve(tmp_path / "run", tmp_path / "function.png")
    assert (picture(tmp_path / "tool.png") == picture(tmp_path / "function.png")).all()


def test_a_missing_log_ends_the_tool_with_one_line_and_status_2(tmp_path, run_tool, capsys):
    assert run_tool(tmp_path, "--out", tmp_path / "curve.png") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}: no training log") and error.count("\n") == 1
