"""The latency of one network in several runtimes: rows that are promised, checked to be the same network."""
import json
import sys

import pytest
import torch

from tools.evidence.benchmark import latency

VGG = """
model = dict(
    type="ImageClassifier",
    backbone=dict(type="{kind}", depth=11, norm_cfg=dict(type="BN"), init_cfg=None),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=10, in_channels=512),
)
"""


@pytest.fixture(autouse=True)
def small_networks(tmp_path, monkeypatch):
    """Two networks that are quick to export, and no code generation, which needs a C++ compiler and time."""
    configs = {}
    for variant, kind in (("BN", "VGG"), ("CE", "CEVGG")):
        configs[variant] = tmp_path / f"{kind}.py"
        configs[variant].write_text(VGG.format(kind=kind))
    monkeypatch.setattr(latency, "NETWORKS", dict(vgg=configs))
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)


def measured(folder, *arguments):
    assert latency.main(["--quick", "--out", str(folder), *arguments]) == 0
    assert {path.name for path in folder.iterdir()} == {"latency.json", "latency.md", "latency.png"}
    (record,) = json.loads((folder / "latency.json").read_text())["records"].values()
    return record, (folder / "latency.md").read_text()


def test_every_runtime_has_rows_for_ce_but_onnxruntime_the_folded_one_alone(tmp_path):
    numbers, page = measured(tmp_path / "out")
    rows = numbers["networks"]["vgg"]["2"]
    assert list(rows["CE plain"]) == list(rows["CE compiled"]) == ["eager", "torch.compile"]
    assert list(rows["CE folded"]) == list(rows["BN"]) == ["eager", "torch.compile", "onnxruntime"]
    for name, variant in rows.items():
        for runtime, row in variant.items():
            assert row["over_eager"]["ms"] > 0
            assert (row["difference"] == 0) == (name in ("BN", "CE plain") and runtime != "onnxruntime")
            assert row["difference"] < 1e-4
    assert rows["CE plain"]["eager"]["over_eager"]["ratio"] == rows["BN"]["onnxruntime"]["over_bn"]["ratio"] == 1
    assert "## vgg, batch 2" in page and "| CE folded | onnxruntime |" in page and "| 2, float32, contiguous |" in page


def test_a_compiler_that_is_not_there_is_said_and_left_out(tmp_path, monkeypatch):
    def no_compiler(module, dynamic):
        def fails(x):
            raise RuntimeError("No working C++ compiler found\nand more")

        return fails

    monkeypatch.setattr(torch, "compile", no_compiler)
    numbers, page = measured(tmp_path / "out", "--runtimes", "torch.compile")
    assert all(list(rows) == ["eager"] for rows in numbers["networks"]["vgg"]["2"].values())
    assert "CE folded in torch.compile is left out: RuntimeError: No working C++ compiler found." in page


def test_a_runtime_that_computes_something_else_ends_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: lambda x: (1.01 * module(x)[0],))
    assert latency.main(["--quick", "--out", str(tmp_path / "out"), "--runtimes", "torch.compile"]) == 2
    assert "BN in torch.compile differs from eager PyTorch by" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dtype", "bfloat16"], "--dtype: this benchmark has float32 alone, not bfloat16"),
        (["--layout", "channels-last"], "--layout: this benchmark has contiguous alone, not channels-last"),
        (["--rounds", "1"], "--rounds must be at least 2, got 1"),
    ],
)
def test_a_setting_that_is_not_measured_ends_with_one_line(tmp_path, capsys, arguments, said):
    assert latency.main(["--quick", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_without_onnxruntime_a_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert latency.main(["--quick", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "onnxruntime" in error and "[onedl,export]" in error and error.count("\n") == 1
