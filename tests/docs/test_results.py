"""docs/results.md states what its records say."""
import json
import re

import pytest
from pages import ROOT, text_of

PAGE = text_of("docs/results.md")
COLUMNS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")


@pytest.mark.parametrize(("row", "folder"), [("shapes", "demo"), ("eight images of COCO", "eight_pictures")])
@pytest.mark.parametrize(("kind", "metric"), [("box", "bbox"), ("mask", "segm")])
def test_a_row_of_the_table_is_that_of_its_record(row, folder, kind, metric):
    metrics = json.loads((ROOT / f"docs/{folder}/metrics.json").read_text("utf-8"))
    values = [metrics[f"coco/{metric}_{column}"] for column in COLUMNS]
    cells = ["–" if value < 0 else f"{value:.3f}" for value in values]
    assert f"| {row}, {kind} | {' | '.join(cells)} |" in PAGE


def test_the_smallest_magnitudes_are_those_of_the_record():
    results = json.loads((ROOT / "docs/cifar10/results.json").read_text("utf-8"))["results"]
    bn, ce = (
        min(value for run in results[name] for layer in run["magnitudes"] for value in layer)
        for name in ("BN+ReLU", "BN+CE+ReLU")
    )
    assert re.search(rf"magnitudes are {bn:.3f} with BN and {ce:.3f} with CE", " ".join(PAGE.split()))


def test_what_is_said_of_the_seeds_of_the_detector_is_so():
    page = text_of("docs/detection/results.md")
    rows = re.findall(r"^\| 3 \| (box|mask) ((?:\| [+-][\d.]+ ){5})\|$", page, re.MULTILINE)
    higher = {kind: sum("+" in cell for cell in cells.split("|")) for kind, cells in rows}
    assert higher == dict(box=4, mask=5)
