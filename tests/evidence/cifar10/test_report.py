"""The page of the study and its pictures, from made-up records."""
import math

import pytest
import torch

from tools.evidence.cifar10.render import main as render_again
from tools.evidence.cifar10.report import FILES, kept, parts_below, table, write_report


def a_run(seed, accuracy, inhibited, smallest_first):
    by_layer = {f"layer {layer}": inhibited for layer in range(7)}
    return dict(
        seed=seed, accuracy=accuracy, threshold=0.01, inhibited=inhibited, curve=[dict(inhibited=by_layer)],
        magnitudes=[[1e-5, 0.03 - inhibited / 10, 1.0, 2.0]],
        smallest_first=smallest_first, at_random=[smallest_first, smallest_first],
    )  # fmt: skip


def record(results, recipe="short"):
    return dict(results=results, recipe=recipe, command="the command", versions=dict(torch="2", ce_mm="0.2"))


@pytest.fixture
def page():
    results = {
        "BN+ReLU": [a_run(0, 80, 0.25, [80, 40, 20]), a_run(1, 81, 0.25, [80, 40, 20])],
        "BN+CE+ReLU": [a_run(1, 83, 0.0, [80, 60, 40]), a_run(0, 81, 0.25, [80, 40, 20])],
        "BN+ELU": [a_run(1, 80, 0.0, [50, 5, 5]), a_run(2, 99, 0.0, [50, 5, 5])],
        "GN+CE+ReLU": [a_run(0, 70, 0.0, [50, 5, 5])],
    }
    return table(record(results, "decay"))


def test_differences_are_those_of_the_seeds_that_both_have(page):
    channels = ["-12.5 ± 17.7", "-12.5 ± 17.7", "+12.5 ± 17.7", "+12.5 ± 17.7"]
    assert f"| BN+CE+ReLU − BN+ReLU | 2 | +1.5 ± 0.7 | {' | '.join(channels)} |" in page
    assert "| BN+ELU − BN+ReLU | 1 | -1.0 | -25.0 | -25.0 | -27.5 | -27.5 |" in page
    assert "| GN+CE+ReLU −" not in page  # there is no GN+ReLU


def test_a_variant_has_its_mean_and_spread(page):
    assert "| BN+ReLU | 2 | 80.50 ± 0.71 | 25.0 ± 0.0 | 50.0 ± 0.0 |" in page
    assert "| GN+CE+ReLU | 1 | 70.00 | 0.0 | 25.0 |" in page


def test_a_network_that_is_never_right_keeps_nothing_that_can_be_told():
    assert math.isnan(kept([[0.0, 0.0, 10.0]]))
    assert kept([[50.0, 25.0, 5.0]]) == pytest.approx(30)


def test_the_main_pair_is_shown_seed_by_seed(page):
    assert "|  | seed 1 | seed 0 |\n| --- | ---: | ---: |\n| top-1 | +2.0 | +1.0 |\n" in page
    assert "| inhibited | -25.0 | +0.0 |" in page


def test_the_pressure_of_the_recipe_stands_beside_that_of_the_paper(page):
    assert "times the sum of the learning rates: 0.62 (`paper`: 0.65)" in page
    short = table(record({"BN+ReLU": [a_run(0, 80, 0.25, [80, 40, 20])]}))
    assert "times the sum of the learning rates: 0.04 (`paper`: 0.65)" in short


def test_the_inhibited_channels_of_each_layer_are_counted_and_those_of_all_alike(measured):
    runs = [measured | dict(magnitudes=[[0.001, 1.0], [high, high, high, 100.0]]) for high in (0.001, 0.2)]
    text = table(record({"BN+ReLU": runs}))
    inhibited, relatively = text.split("Relatively inhibited channels by layer")
    assert "| BN+ReLU | 50.0 | 37.5 | 41.7 |" in inhibited.split("Inhibited channels by layer")[1]
    assert "| BN+ReLU | 50.0 | 75.0 | 66.7 |" in relatively


def test_it_says_how_many_trainings_are_not_finished(measured):
    some = record({"BN+ReLU": [measured]})
    assert "trainings" not in table(some) + table(some | dict(planned=1))
    assert "Of its 3 trainings 1 were finished." in table(some | dict(planned=3))


def test_gamma_and_beta_are_counted_over_the_seeds(measured):
    def part(channels, nonpositive, gamma):
        return dict(channels=channels, nonpositive=nonpositive, gamma=gamma)

    norms = [dict(inhibited=part(*low), others=part(50, 10, 0.2)) for low in [(1, 1, 0.01), (7, 5, 0.02)]]
    old = {name: value for name, value in measured.items() if name != "norms"}
    text = table(record({"BN+ReLU": [measured | dict(norms=each) for each in norms], "BN+ELU": [old]}))
    assert "| BN+ReLU, inhibited | 8 | 75.0 | 0.015 |\n| BN+ReLU, others | 100 | 20.0 | 0.200 |" in text
    assert "BN+ELU," not in text
    none = dict(inhibited=part(0, 0, None), others=part(50, 10, 0.2))
    text = table(record({"BN+ReLU": [measured | dict(norms=none)]}))
    assert "| BN+ReLU, others | 50 | 20.0 | 0.200 |" in text and "BN+ReLU, inhibited" not in text


def test_the_part_of_the_channels_below_a_threshold_is_that_of_the_mean_layer():
    layers, thresholds = [[1.0, 3.0], [2.0, 2.0, 2.0, 10.0]], torch.tensor([1.5, 2.5], dtype=torch.float64)
    assert parts_below(layers, thresholds, of_mean=False).mean(0).tolist() == [0.25, 0.625]
    assert parts_below(layers, thresholds / 4, of_mean=True).mean(0).tolist() == [0.0, 0.625]


def test_the_report_is_a_table_numbers_and_pictures_and_can_be_written_again(measured, tmp_path, monkeypatch):
    write_report({"BN+ReLU": [measured]}, tmp_path, "short", "the command", 1)
    assert set(FILES) <= {path.name for path in tmp_path.iterdir()}
    page = (tmp_path / "results.md").read_text()
    assert all(f"({picture})" in page for picture in FILES[2:])
    for name in FILES[1:]:
        (tmp_path / name).unlink()
    monkeypatch.setattr("sys.argv", ["render", str(tmp_path)])
    assert render_again() == 0
    assert (tmp_path / "results.md").read_text() == page
    assert all((tmp_path / name).exists() for name in FILES)


def test_a_folder_without_numbers_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["render", str(tmp_path)])
    assert render_again() == 2
    assert "expected a results.json" in capsys.readouterr().err
