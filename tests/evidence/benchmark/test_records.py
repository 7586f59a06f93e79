"""Each benchmark has one file of records, a machine and day to a record, and a page that is made from it alone."""
import json
from pathlib import Path

import pytest

from tools.evidence.benchmark import records, render

DOCS = Path(__file__).resolve().parents[3] / "docs" / "benchmark"
SETTINGS = dict(batch=8, dtype="float32", layout="contiguous", warmup=1, rounds=2)
BENCHMARK = records.Benchmark("some", "Some", ["As it is."], lambda record: record["found"])


def record(device, date, **found):
    where = dict(device=device, date=date, cores=2, threads=1, torch="2", triton=None, python="3", ce_mm="1")
    return dict(machine=where, settings=SETTINGS, command="python", notes=[], found=found)


def test_a_run_takes_the_place_of_that_machine_s_of_the_same_day_and_leaves_the_others(tmp_path):
    for device, date, value in (("A", "1", "old"), ("B", "1", "other"), ("A", "2", "later"), ("A", "1", "new")):
        records.add(tmp_path, BENCHMARK, record(device, date) | dict(command=value))
    found = json.loads((tmp_path / "some.json").read_text())["records"]
    commands = {name: each["command"] for name, each in found.items()}
    assert list(commands.items()) == [("A, 1", "new"), ("A, 2", "later"), ("B, 1", "other")]  # the newest first


def test_a_column_has_a_dash_where_its_machine_has_no_figure():
    runs = dict(
        A=record("A", "1", speed={("CE", "step"): "2", ("BN", "step"): "1"}),
        B=record("B", "1", speed={("CE", "step"): "3"}, size={("CE", "saved"): "4"}),
    )
    page = records.page(BENCHMARK, runs)
    assert page.startswith("# Some\n\nAs it is.\n\n|  | A | B |")
    head = "|  |  | A | B |\n| --- | --- | ---: | ---: |"
    assert f"## speed\n\n{head}\n| CE | step | 2 | 3 |\n| BN | step | 1 | – |" in page
    assert page.endswith(f"## size\n\n{head}\n| CE | saved | – | 4 |")


RECORDED = [benchmark for benchmark in render.BENCHMARKS if (DOCS / f"{benchmark.name}.json").is_file()]


@pytest.mark.parametrize("benchmark", RECORDED, ids=lambda benchmark: benchmark.name)
def test_every_page_of_the_docs_is_that_of_its_records(benchmark):
    page = records.page(benchmark, records.read(DOCS, benchmark))
    assert (DOCS / f"{benchmark.name}.md").read_text(encoding="utf-8") == page + "\n"


def test_pages_and_pictures_are_written_again_from_the_records(tmp_path):
    before = (DOCS / "network.json").read_bytes()
    (tmp_path / "network.json").write_bytes(before)
    assert render.main([str(tmp_path)]) == 0
    assert (tmp_path / "network.json").read_bytes() == before
    assert (tmp_path / "network.md").read_bytes() == (DOCS / "network.md").read_bytes()
    assert (tmp_path / "network.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_records_is_one_line(tmp_path, capsys):
    assert render.main([str(tmp_path)]) == 2
    assert "there is none of op.json, network.json, steps.json, latency.json, int8.json" in capsys.readouterr().err
