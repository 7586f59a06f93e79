"""The two commands: three files with the numbers that are promised, or one clear line."""
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from ce_mm.layers import CENorm
from tools.evidence.benchmark import network, op
from tools.evidence.benchmark.settings import Settings

VARIANTS = ["BN", "BN+SE", "IterNorm", "literal CE", "CE"]
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
    name = f"{name_of(tool)}_cpu"
    assert tool.main(["--quick", "--device", "cpu", "--out", str(folder / "results"), *arguments]) == 0
    assert {path.name for path in (folder / "results").iterdir()} == {f"{name}.json", f"{name}.md", f"{name}.png"}
    assert (folder / "results" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((folder / "results" / f"{name}.json").read_text())
    assert set(numbers["machine"]) >= MACHINE
    assert numbers["command"].startswith(f"python -m {tool.__name__} --quick")
    return numbers, (folder / "results" / f"{name}.md").read_text()


def test_op_writes_layers_scaling_and_passes(tmp_path):
    numbers, page = quick(op, tmp_path)
    for layer in numbers["layers"]:
        assert list(layer["variants"]) == VARIANTS
        for variant in layer["variants"].values():
            assert set(variant) == STAGES | {"saved", "peak"}
            assert {"ms", "low", "ratio", "high", "bytes_per_second", "of_copy"} == set(variant["forward"])
            assert variant["saved"]["bytes"] > 0 < variant["peak"]["bytes"]
        assert layer["variants"]["BN"]["step"]["ratio"] == 1
    assert list(numbers["scaling"]) == ["N", "C", "H·W", "g"]
    for series in numbers["scaling"].values():
        assert len(series["sizes"]) == len(series["ratios"]) == len(series["CE"]["ms"]) == len(series["BN"]["ms"])
        assert isinstance(series["CE"]["exponent"], float)
    assert [row["pass"] for row in numbers["passes"]] == ["moments", "group_affine", "output_sums", "input_gradient"]
    assert numbers["passes"][1]["bytes"] == 2 * 2 * 32 * 8 * 8 * 4
    assert all(f"| {name} | " in page for name in VARIANTS)


def test_op_measures_the_parts_that_are_asked_for(tmp_path):
    numbers, _ = quick(op, tmp_path, "--parts", "passes")
    assert "passes" in numbers and not {"layers", "scaling"} & set(numbers)


def test_network_needs_torch_alone_for_resnet50(tmp_path, monkeypatch):
    for name in ("mmpretrain", "mmdet"):
        monkeypatch.setitem(sys.modules, name, None)
    numbers, page = quick(network, tmp_path, "--networks", "resnet50-torch", "mobilenetv2", "mask-rcnn")
    assert list(numbers["networks"]) == ["resnet50-torch"]
    assert list(numbers["networks"]["resnet50-torch"]["variants"]) == VARIANTS
    assert "mobilenetv2 is left out: ce_mm needs mmpretrain" in page
    assert "mask-rcnn is left out: ce_mm needs mm" in page


def test_ce_stands_at_every_depthwise_convolution_of_mobilenetv2_and_where_ce_resnet_has_it(settings):
    expected = [("mobilenetv2", ["BN"], 17), ("resnet50", ["BN", "BN+SE"], 1 + 3 + 4 + 6)]
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
for name, case in network.NETWORKS["mask-rcnn"](quick).items():
    case.forward()
    case.backward()
    print(name, case.output.item())
"""


def test_mask_rcnn_steps_with_as_many_masks_in_both_variants():
    # In a process of its own: mmdet keeps what it found of mmcv's operators when it was first imported.
    run = subprocess.run([sys.executable, "-c", COUNT_MASKS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    masks, bn, more, ce = [line.split() for line in run.stdout.splitlines()][-4:]
    assert masks == more == ["masks", "8"]
    assert (bn[0], ce[0]) == ("BN", "CE")
    assert math.isfinite(float(bn[1])) and math.isfinite(float(ce[1]))


def test_a_picture_is_drawn_again_from_the_numbers(tmp_path):
    quick(op, tmp_path, "--parts", "passes")
    picture = tmp_path / "results" / "op_cpu.png"
    first = picture.read_bytes()
    picture.unlink()
    assert op.main(["--plot", str(picture.with_suffix(".json"))]) == 0
    assert picture.read_bytes() == first


def test_without_matplotlib_the_numbers_are_written_and_a_line_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "tools.evidence.benchmark.pictures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert op.main(["--quick", "--device", "cpu", "--out", str(tmp_path), "--parts", "passes"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"op_cpu.json", "op_cpu.md"}
    assert "no picture: matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--out", "results", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["--out", "results", "--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["--out", "results", "--warmup", "-1"], "--warmup must be at least 0, got -1"),
        (["--plot", "numbers.json"], "numbers.json: expected the JSON file that a benchmark wrote"),
        (["--plot", "numbers.png"], "numbers.png: is numbers.png, from which it would be made"),
        (["--plot", "absent.json"], "No such file or directory: 'absent.json'"),
    ],
)
@pytest.mark.parametrize("tool", [op, network], ids=name_of)
def test_a_bad_option_ends_with_one_clear_line_and_status_2(tool, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numbers.json").write_text("{}")
    (tmp_path / "numbers.png").write_text('{"benchmark": "op"}')
    assert tool.main([*arguments, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_gpu_that_is_not_there_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert op.main(["--out", str(tmp_path), "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "error: --device cuda: PyTorch finds no GPU here\n"
