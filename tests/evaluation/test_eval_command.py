import json

import pytest

from ce_mm.commands.eval import format_table, main
from ce_mm.evaluation import evaluate_coco
from ce_mm.evaluation.coco import NUMBERS


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    def run(*args: object) -> int:
        monkeypatch.setattr("sys.argv", ["ce_mm eval", *map(str, args)])
        return main()

    return run


def test_it_prints_the_table_and_writes_the_numbers(
    annotations, detections, write_results, tmp_path, run, capsys
) -> None:
    results = write_results(detections)
    out = tmp_path / "numbers.json"
    run(annotations, results, "--metrics", "segm", "--per-category", "--out", out)
    numbers = evaluate_coco(annotations, results, ["segm"], per_category=True)
    assert capsys.readouterr().out == format_table(numbers) + "\n"
    assert json.loads(out.read_text()) == numbers


def test_it_evaluates_boxes_and_masks_unless_told(annotations, detections, write_results, run, capsys) -> None:
    results = write_results(detections)
    run(annotations, results)
    assert capsys.readouterr().out == format_table(evaluate_coco(annotations, results, ["bbox", "segm"])) + "\n"


def test_it_takes_the_names_of_the_classes(annotations, detections, write_results, run, capsys) -> None:
    results = write_results(detections)
    run(annotations, results, "--per-category", "--classes", "cat")
    numbers = evaluate_coco(annotations, results, per_category=True, classes=["cat"])
    assert capsys.readouterr().out == format_table(numbers) + "\n"


def test_it_takes_the_names_from_a_config(annotations, detections, write_results, tmp_path, run, capsys) -> None:
    pytest.importorskip("mmdet", exc_type=ImportError)
    dataset = "dict(type='mmdet.CocoDataset', metainfo=dict(classes=['cat']))"
    (tmp_path / "config.py").write_text(f"test_dataloader = dict(dataset={dataset})")
    results = write_results(detections)
    run(annotations, results, "--per-category", "--config", tmp_path / "config.py")
    numbers = evaluate_coco(annotations, results, per_category=True, classes=["cat"])
    assert capsys.readouterr().out == format_table(numbers) + "\n"


def refused(run, capsys, *args: object) -> str:
    """What the tool says in its one line about these arguments."""
    status, output = run(*args), capsys.readouterr()
    assert (status, output.out, output.err.count("\n")) == (2, "", 1)
    return output.err


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("none/numbers.json", "does not exist"),
        ("results.json/numbers.json", "does not exist"),
        ("folder", "is a folder"),
        ("results.json", "from which it would be made"),
        ("config.py", "from which it would be made"),
        ("none/../annotations.json", "does not exist; make it first"),
    ],
)
def test_where_the_numbers_go_is_looked_at_before_anything_is_read(tmp_path, run, capsys, name, fault) -> None:
    (tmp_path / "folder").mkdir()
    files = [tmp_path / name for name in ("annotations.json", "results.json", "config.py")]
    for file in files:
        file.write_text("none of this, which would be said if it was read")
    assert fault in refused(run, capsys, *files[:2], "--config", files[2], "--out", tmp_path / name)
    assert {file.read_text() for file in files} == {"none of this, which would be said if it was read"}


def test_a_locked_folder_is_named(annotations, write_results, tmp_path, run, capsys, monkeypatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path / "locked")  # root may write anywhere
    (tmp_path / "locked").mkdir()
    out = tmp_path / "locked/numbers.json"
    assert "may not be written to" in refused(run, capsys, annotations, write_results([]), "--out", out)


def test_the_numbers_take_the_place_of_older_ones_in_full(
    dataset, annotations, detections, write_results, tmp_path, run
) -> None:
    dataset["categories"][0]["name"] = "gro\u00df \ud800"
    annotations.write_text(json.dumps(dataset))
    detections[0]["bbox"][0] += 3
    results, out = write_results(detections), tmp_path / "numbers.json"
    out.write_text("old")
    run(annotations, results, "--per-category", "--out", out)
    assert json.loads(out.read_text()) == evaluate_coco(annotations, results, per_category=True)
    assert {path.name for path in tmp_path.iterdir()} == {"annotations.json", "results.json", "numbers.json"}


@pytest.mark.parametrize("missing", ["annotations", "results"])
def test_bad_input_ends_with_one_line(annotations, write_results, tmp_path, run, capsys, missing) -> None:
    files = {"annotations": annotations, "results": write_results([])} | {missing: tmp_path / "none.json"}
    error = refused(run, capsys, files["annotations"], files["results"], "--out", tmp_path / "numbers.json")
    assert error.startswith(f"error: {tmp_path / 'none.json'}: no such file")
    assert not (tmp_path / "numbers.json").exists()


class TestTheTable:
    def test_has_a_row_for_each_number_and_a_column_for_each_metric(self, annotations, write_results) -> None:
        lines = format_table(evaluate_coco(annotations, write_results([]))).splitlines()
        assert lines[0].split() == ["bbox", "segm"]
        assert [line.split()[0] for line in lines[1:]] == list(NUMBERS)
        assert lines[1].split() == ["mAP", "0.000", "0.000"]
        assert lines[6].split() == ["mAP_l", "-1.000", "-1.000"]
        assert len({len(line) for line in lines}) == 1

    def test_shows_only_the_metrics_that_there_are(self, annotations, detections, write_results) -> None:
        table = format_table(evaluate_coco(annotations, write_results(detections), ["segm"]))
        assert "bbox" not in table
        assert table.splitlines()[2].split() == ["mAP_50", "1.000"]

    def test_ends_with_the_categories_when_asked(self, annotations, detections, write_results) -> None:
        numbers = evaluate_coco(annotations, write_results(detections[1:]), per_category=True)
        lines = [line.split() for line in format_table(numbers).splitlines()]
        assert lines[13:] == [["cat_precision", "1.000", "1.000"], ["dog_precision", "0.505", "0.505"]]
