import json
import runpy
from pathlib import Path

import pytest

from ce_mm.evaluation import evaluate_coco, format_table

TOOL = Path(__file__).resolve().parents[2] / "tools/eval_coco.py"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    def run(*args: object) -> None:
        monkeypatch.setattr("sys.argv", [str(TOOL), *map(str, args)])
        runpy.run_path(str(TOOL), run_name="__main__")

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


def test_it_does_not_replace_what_it_reads(annotations, detections, write_results, run, capsys) -> None:
    results = write_results(detections)
    before = annotations.read_bytes(), results.read_bytes()
    for path in (annotations, results):
        with pytest.raises(SystemExit):
            run(annotations, results, "--out", path.parent / "none" / ".." / path.name)
        assert "from which it would be made" in capsys.readouterr().err
    assert (annotations.read_bytes(), results.read_bytes()) == before


@pytest.mark.parametrize("missing", ["annotations", "results"])
def test_bad_input_ends_with_one_line_and_status_2(annotations, write_results, tmp_path, run, capsys, missing) -> None:
    files = {"annotations": annotations, "results": write_results([])} | {missing: tmp_path / "none.json"}
    with pytest.raises(SystemExit) as end:
        run(files["annotations"], files["results"])
    assert end.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1 and output.err.startswith(f"error: {tmp_path / 'none.json'}: no such file")


def test_the_config_is_not_replaced(annotations, detections, write_results, tmp_path, run, capsys) -> None:
    config = tmp_path / "config.py"
    config.write_text("mine = 1")
    with pytest.raises(SystemExit):
        run(annotations, write_results(detections), "--config", config, "--out", config)
    assert config.read_text() == "mine = 1"
    assert "from which it would be made" in capsys.readouterr().err
