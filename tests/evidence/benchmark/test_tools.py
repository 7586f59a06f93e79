"""The commands: a record with the numbers that are promised, its page and its picture, or one clear line."""
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ce_mm.layers import CENorm
from tools.evidence.benchmark import network, op, steps
from tools.evidence.benchmark.settings import Settings

VARIANTS = ["BN", "BN+SE", "IterNorm", "literal CE", "CE plain", "CE compiled"]
STAGES = {"forward", "backward", "step", "eval"}
ROOT = Path(__file__).resolve().parents[3]
MACHINE = {"device", "cpu", "cores", "threads", "python", "torch", "triton", "ce_mm", "date"}


@pytest.fixture
def settings():
    return Settings("cpu", batch=2, dtype="float32", layout="contiguous", warmup=0, rounds=2, quick=True)


def name_of(tool):
    return tool.__name__.rpartition(".")[2]


def quick(tool, folder, *arguments):
    """The numbers and the page of a quick run on the CPU."""
    name = name_of(tool)
    assert tool.main(["--quick", "--device", "cpu", "--out", str(folder / "results"), *arguments]) == 0
    assert {path.name for path in (folder / "results").iterdir()} == {f"{name}.json", f"{name}.md", f"{name}.png"}
    assert (folder / "results" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    (numbers,) = json.loads((folder / "results" / f"{name}.json").read_text())["records"].values()
    assert set(numbers["machine"]) >= MACHINE
    assert numbers["command"].startswith(f"python -m {tool.__name__} --quick")
    return numbers, (folder / "results" / f"{name}.md").read_text()


def test_op_writes_layers_scaling_and_passes(tmp_path):
    numbers, page = quick(op, tmp_path)
    assert list(numbers["layers"]) == ["2×32×8×8", "2×64×4×4"]
    for variants in numbers["layers"].values():
        assert list(variants) == VARIANTS
        for variant in variants.values():
            assert set(variant) == STAGES | {"saved", "peak"}
            assert {"ms", "low", "ratio", "high"} == set(variant["forward"])
            assert variant["saved"]["bytes"] > 0 < variant["peak"]["bytes"]
        assert variants["BN"]["step"]["ratio"] == 1
    assert list(numbers["scaling"]) == ["N", "C", "H·W", "g"]
    for series in numbers["scaling"].values():
        assert list(series["variants"]) == ["BN", "CE plain", "CE compiled"]
        for variant in series["variants"].values():
            assert len(series["sizes"]) == len(variant["ratios"]) == len(variant["ms"])
            assert isinstance(variant["exponent"], float)
    (passes,) = numbers["passes"].values()
    assert list(passes) == ["moments", "group_affine", "output_sums", "input_gradient"]
    for variant in ("CE plain", "CE compiled"):
        figures = passes["group_affine"][variant]
        assert figures["bytes"] == 2 * 2 * 32 * 8 * 8 * 4
        assert figures["bytes_per_second"] == pytest.approx(figures["bytes"] / (1e-3 * figures["ms"]))
    assert all(f"| {name} | " in page for name in VARIANTS)


def test_op_measures_the_parts_that_are_asked_for(tmp_path):
    numbers, _ = quick(op, tmp_path, "--parts", "passes")
    assert "passes" in numbers and not {"layers", "scaling"} & set(numbers)


def test_op_measures_bn_and_ce_by_torch_compile_if_asked_for(tmp_path):
    numbers, _ = quick(op, tmp_path, "--parts", "layers", "--torch-compile", "eager")
    for variants in numbers["layers"].values():
        assert list(variants) == [*VARIANTS, "BN, torch.compile", "CE, torch.compile"]


def test_steps_compares_what_launches_them(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "resnet50", lambda layer, **_: torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), layer(16)))
    assert steps.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    (numbers,) = json.loads((tmp_path / "steps.json").read_text())["records"].values()
    found = numbers["networks"]["resnet50-torch"]
    ways = ("", ", CUDA graph", ", torch.compile")
    assert set(found) == {name + way for name in ("BN", "CE") for way in ways}
    assert all(variant["step"]["ms"] > 0 for variant in found.values())


def test_network_needs_torch_alone_for_resnet50(tmp_path, monkeypatch):
    for name in ("mmpretrain", "mmdet"):
        monkeypatch.setitem(sys.modules, name, None)
    numbers, page = quick(network, tmp_path, "--networks", "resnet50-torch", "mobilenetv2", "mask-rcnn")
    assert list(numbers["networks"]) == ["resnet50-torch"]
    assert list(numbers["networks"]["resnet50-torch"]) == VARIANTS
    assert "mobilenetv2 is left out: ce_mm needs mmpretrain" in page
    assert "mask-rcnn is left out: ce_mm needs mm" in page


def test_ce_stands_where_each_backbone_has_it(settings):
    expected = [
        ("mobilenetv2", ["BN"], 17), ("shufflenetv2", ["BN"], 16), ("vgg16", ["BN"], 13),
        ("resnet50", ["BN", "BN+SE"], 1 + 3 + 4 + 6),
    ]  # fmt: skip
    for name, variants, places in expected:
        cases = network.NETWORKS[name](settings)
        counts = {name: sum(isinstance(m, CENorm) for m in case.module.modules()) for name, case in cases.items()}
        assert counts == {**dict.fromkeys(variants, 0), "CE": places}


COUNT_MASKS = """
from tools.evidence.benchmark import network, settings
from mmdet.models.roi_heads.mask_heads import FCNMaskHead

forward = FCNMaskHead.forward
FCNMaskHead.forward = lambda self, x: print("masks", len(x)) or forward(self, x)
quick = settings.Settings("cpu", batch=2, dtype="float32", layout="contiguous", warmup=0, rounds=2, quick=True)
for detector in ("mask-rcnn", "demo"):
    for name, case in network.NETWORKS[detector](quick).items():
        case.forward()
        case.backward()
        print(name, case.output.item())
"""


def test_the_detectors_step_with_as_many_masks_in_both_variants():
    # In a process of its own: mmdet keeps what it found of mmcv's operators when it was first imported.
    run = subprocess.run([sys.executable, "-c", COUNT_MASKS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()][-8:]
    assert lines[::2] == [["masks", "8"]] * 2 + [["masks", "16"]] * 2  # of two pictures, and of four
    assert [name for name, _ in lines[1::2]] == ["BN", "CE"] * 2
    assert all(math.isfinite(float(loss)) for _, loss in lines[1::2])


def test_without_matplotlib_the_numbers_are_written_and_a_line_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "tools.evidence.benchmark.pictures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert op.main(["--quick", "--device", "cpu", "--out", str(tmp_path), "--parts", "passes"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"op.json", "op.md"}
    assert "no picture: matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--out", "results", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["--out", "results", "--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["--out", "results", "--warmup", "-1"], "--warmup must be at least 0, got -1"),
        (["--out", "mine"], "expected the records of a benchmark"),
    ],
)
@pytest.mark.parametrize("tool", [op, network], ids=name_of)
def test_a_bad_option_ends_with_one_clear_line_and_status_2(tool, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine" / f"{name_of(tool)}.json"
    mine.parent.mkdir()
    mine.write_text("{}")
    assert tool.main([*arguments, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert [*tmp_path.iterdir()] == [mine.parent] and mine.read_text() == "{}"


def test_a_gpu_that_is_not_there_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert op.main(["--out", str(tmp_path), "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "error: --device cuda: PyTorch finds no GPU here\n"
