"""docs/results.md states what its records say."""
import json
import re

import pytest
from pages import ROOT, text_of
from scipy.stats import t

PAGE = text_of("docs/results.md")
RECIPES = ("decay", "decay-weights")
COLUMNS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")


@pytest.mark.parametrize(("row", "folder"), [("shapes", "demo"), ("eight images of COCO", "eight_pictures")])
@pytest.mark.parametrize(("kind", "metric"), [("box", "bbox"), ("mask", "segm")])
def test_a_row_of_the_table_is_that_of_its_record(row, folder, kind, metric):
    metrics = json.loads((ROOT / f"docs/{folder}/metrics.json").read_text("utf-8"))
    values = [metrics[f"coco/{metric}_{column}"] for column in COLUMNS]
    cells = ["–" if value < 0 else f"{value:.3f}" for value in values]
    assert f"| {row}, {kind} | {' | '.join(cells)} |" in PAGE


def section(heading):
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]


CLAIMS = [part for part in section("The paper's claims, one by one").split("\n\n") if part.startswith("**")]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.split("**")[1])
def test_the_numbers_of_a_claim_stand_in_the_records_that_it_names(claim):
    records = [text_of(f"docs/{page}") for page in re.findall(r"\]\(([\w/-]+\.md)\)", claim)]
    words = " ".join(re.sub(r"\]\(.*?\)", "]", claim).split())
    numbers = re.findall(r"[+-]?\d+\.\d+(?: ± \d+\.\d+)?|\b\d{3,}\b", words)
    for number in numbers:
        alone = rf"(?<![\d.]){re.escape(number)}(?!\d)"
        assert any(re.search(alone, record) for record in records), number


def test_there_are_claims_with_numbers():
    assert len(CLAIMS) >= 9
    assert sum("±" in claim for claim in CLAIMS) >= 4


def first_table(text):
    return re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0]


def rows_of(table):
    """Name to cells, without the heading."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {name: cells for name, *cells in rows[2:]}


def test_the_table_of_cifar10_is_the_first_of_its_record():
    assert first_table(section("CIFAR-10")) == first_table(text_of("docs/cifar10/decay/results.md"))


def test_the_table_of_branches_has_both_recipes_side_by_side():
    table = rows_of(first_table(section("CIFAR-10").split("### Which branch")[1]))
    decay, weights = (rows_of(first_table(text_of(f"docs/cifar10/{name}/results.md"))) for name in RECIPES)
    assert table == {name: decay[name] + weights[name] for name in weights}


def test_without_decay_of_gamma_and_beta_nothing_is_inhibited():
    rows = rows_of(first_table(text_of("docs/cifar10/decay-weights/results.md")))
    assert {cell.split()[0] for cells in rows.values() for cell in cells[2:]} == {"0.0"}


def seeds_above(name):
    """Of CE − BN: what is compared, to whether it is above 0 for each seed; "+0.0" counts as above."""
    rows = re.findall(r"^\| ([a-z][^|]*) ((?:\| [+-][\d.]+ ){3,})\|$", text_of(f"docs/cifar10/{name}"), re.MULTILINE)
    return {what: ["+" in cell for cell in cells.split("|")[1:]] for what, cells in rows}


def test_what_is_said_of_each_seed_is_so():
    decay = seeds_above("decay/results.md")
    assert len(decay["top-1"]) == 5
    assert all(decay["top-1"] + decay["kept, smallest first"])
    assert not any(decay["inhibited"] + decay["relatively"])
    assert len(set(decay["kept, at random"])) == 2
    for name in ("decay-weights/results.md", "results.md"):
        assert seeds_above(name)["kept, at random"] == [False] * 3


def test_what_is_said_of_the_seeds_of_the_detector_is_so():
    page = text_of("docs/detection/results.md")
    rows = re.findall(r"^\| (3|9) \| 1000 \| (box|mask) ((?:\| [+-][\d.]+ ){5})\|$", page, re.MULTILINE)
    seeds = {(epochs, kind): [float(cell) for cell in cells.split("|")[1:]] for epochs, kind, cells in rows}
    higher = {row: sum(difference > 0 for difference in differences) for row, differences in seeds.items()}
    assert higher == {("3", "box"): 5, ("3", "mask"): 5, ("9", "box"): 4, ("9", "mask"): 5}
    assert min(seeds["9", "box"]) == 0


@pytest.mark.parametrize(("seeds", "factor", "words"), [(5, 1.24, "five"), (3, 2.48, "three"), (2, 8.98, "two")])
def test_the_interval_of_so_many_seeds_is_student_s(seeds, factor, words):
    assert f"by {factor} with {words}" in " ".join(PAGE.split())
    assert t.ppf(0.975, seeds - 1) / seeds**0.5 == pytest.approx(factor, abs=0.005)
