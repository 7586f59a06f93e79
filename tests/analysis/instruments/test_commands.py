"""The commands, on the demo's configs: what they write is what was set by hand."""
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from PIL import Image

from ce_mm.analysis.instruments.command import table
from ce_mm.analysis.instruments.inhibited_channels import measure
from ce_mm.analysis.instruments.source import Source


def report_of(folder, name):
    picture = Image.open(folder / f"{name}.png")
    assert picture.width > 500 and len(picture.convert("L").getcolors()) > 5
    return json.loads((folder / f"{name}.json").read_text())


def with_weights(there, name, change):
    """The classifier's checkpoint, changed."""
    state = torch.load(there.classifier[1], weights_only=True)
    change(state["state_dict"])
    path = there.folder / name
    torch.save(state, path)
    return there.classifier[0], str(path)


def test_inhibited_channels_are_those_that_were_zeroed(there, tool, tmp_path, capsys):
    def kill(weights):
        for name, dead in (("backbone.bn1.norm", 8), ("backbone.layer1.0.bn1", 4)):
            weights[f"{name}.weight"][:] = torch.where(torch.arange(32) < dead, 0.0, 0.02)
            weights[f"{name}.bias"][:] = torch.where(torch.arange(32) < dead, 0.0, 5.0)

    arguments = with_weights(there, "dead.pth", kill)
    assert tool("inhibited_channels", *arguments, "--layers", 2, "--samples", 6, "--out", tmp_path) == 0
    report = report_of(tmp_path, "inhibited_channels")
    first, second = report["layers"][:2]
    assert (first["place"], first["inhibited"]) == ("backbone.bn1", 8 / 32)
    assert (second["place"], second["inhibited"]) == ("backbone.layer1.0.relu", 4 / 32)
    assert second["magnitudes"] == pytest.approx([0] * 4 + [5] * 28, abs=0.1)
    assert report["mean"]["of_first"] == 6 / 32 and report["mean"]["layers"] == 2
    assert report["threshold"] == 0.01 and report["samples"] == 6
    assert sum(report["histogram"]["channels"]) == 64 and report["histogram"]["channels"][0] == 12
    gamma = {row["norm"]: row["inhibited"] for row in report["gamma"]["norms"]}
    assert gamma["backbone.bn1"] == 8 / 32 and gamma["backbone.layer1.0.bn1"] == 4 / 32
    assert gamma["backbone.layer4.0.downsample.1"] == 0
    assert report["gamma"]["mean"]["of_first"] == 6 / 32
    assert "0.188 on average over the first 2 layers" in capsys.readouterr().out


def test_the_threshold_decides(there):
    source = Source(*there.classifier, samples=6)
    low, high = (measure(source, threshold, 6)["mean"]["of_all"] for threshold in (0, 1e9))
    assert (low, high) == (0, 1)


def test_a_detector_is_measured_beside_its_checkpoint_unless_told(there, tool):
    config, checkpoint = there.detector
    assert tool("inhibited_channels", config, checkpoint, "--samples", 1) == 0
    report = report_of(there.folder / "detector/analysis", "inhibited_channels")
    places = [row["place"] for row in report["layers"]]
    assert places[:3] == ["backbone.bn1", "backbone.layer1.0.relu", "backbone.layer1.0.bn2"]
    assert places[-1] == "roi_head.mask_head.relu"
    assert report["mean"]["layers"] == 6


def test_a_network_without_ce_has_the_same_layers(there, tool, tmp_path):
    config = tmp_path / "plain.py"
    config.write_text(f"_base_ = [{there.classifier[0]!r}]\nmodel = dict(backbone=dict(type='mmpretrain.ResNet'))\n")
    cfg = Config.fromfile(config)
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(cfg.model | dict(data_preprocessor=cfg.data_preprocessor))
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    for name in ("inhibited_channels", "spectrum"):
        assert tool(name, config, tmp_path / "plain.pth", "--samples", 6) == 0
    assert tool("norm_parameters", config, tmp_path / "plain.pth") == 0
    out = tmp_path / "analysis"
    assert [row["place"] for row in report_of(out, "inhibited_channels")["layers"]][:2] == [
        "backbone.relu", "backbone.layer1.0.relu",
    ]  # fmt: skip
    assert all(row["after"] is None for row in report_of(out, "spectrum")["layers"])
    assert report_of(out, "norm_parameters")["ce_layers"] == []


def test_ablation_begins_at_the_intact_network_and_says_what_it_took(there, tool, tmp_path, capsys):
    arguments = (*there.classifier, "--samples", 6, "--layers", 1, "--drop-layer", 17, "--runs", 2, "--out", tmp_path)
    assert tool("ablation", *arguments) == 0
    report = report_of(tmp_path, "ablation")
    intact = Source(*there.classifier, samples=6).load().evaluate()
    cumulative, drop = report["cumulative"], report["drop"]
    assert report["metric"] == "accuracy/top1"
    assert cumulative["places"] == ["backbone.bn1"]
    assert (drop["layer"], drop["place"]) == (17, "backbone.layer4.1.relu#2")
    for curve in (cumulative["least_first"], *cumulative["random"]["runs"], *drop["random"]["runs"]):
        assert len(curve) == len(report["ratios"]) == 10
        assert curve[0] == pytest.approx(intact)
    first, second = drop["random"]["runs"]
    assert drop["random"]["mean"] == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)])
    assert drop["random"]["spread"] == pytest.approx(
        [abs(a - b) / 2**0.5 for a, b in zip(first, second, strict=True)], abs=1e-9
    )
    assert f"accuracy/top1 over 6 pictures: {intact:.3f}; without half of" in capsys.readouterr().out


def test_norm_parameters_are_those_that_were_set(there, tool, tmp_path, monkeypatch, capsys):
    def change(weights):
        for name, value in weights.items():
            if name.endswith(".bias"):
                value.fill_(1)
        weights["backbone.bn1.norm.bias"][:8] = 0
        weights["backbone.bn1.mix"].fill_(torch.tensor(3.0).log())

    arguments = with_weights(there, "set.pth", change)
    monkeypatch.chdir(tmp_path)  # no data there
    assert tool("norm_parameters", *arguments, "--out", "out") == 0
    report = report_of(tmp_path / "out", "norm_parameters")
    shares = {row["norm"]: row["nonpositive_beta"] for row in report["norms"]}
    assert shares.pop("backbone.bn1") == 8 / 32
    assert set(shares.values()) == {0}
    channels = sum(row["channels"] for row in report["norms"])
    assert report["nonpositive_beta"] == pytest.approx(8 / channels)
    ratios = {row["norm"]: row["lambda"] for row in report["ce_layers"]}
    assert ratios.pop("backbone.bn1") == pytest.approx(0.75)
    assert set(ratios.values()) == {0.5} and len(ratios) == 6
    assert "beta <= 0 in 0.003 of all channels" in capsys.readouterr().out


def test_spectrum_tells_both_sides_of_ce(there, tool, tmp_path):
    assert tool("spectrum", *there.classifier, "--samples", 6, "--out", tmp_path) == 0
    layers = {row["norm"]: row for row in report_of(tmp_path, "spectrum")["layers"]}
    assert len(layers) == 20
    stem = layers["backbone.bn1"]
    assert (stem["group_size"], stem["groups"]) == (16, 2)
    assert stem["before"] > 0 and stem["after"] > 0
    assert [len(values) for values in stem["eigenvalues_after"]] == [16, 16]
    assert layers["backbone.layer1.0.bn1"]["after"] is None


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("inhibited_channels", ["--threshold", "-1"], "the threshold of inhibited channels must be at least 0"),
        ("inhibited_channels", ["--layers", "0"], "expected at least one layer, got 0"),
        ("inhibited_channels", ["--samples", "0"], "expected at least one sample, got 0"),
        ("ablation", ["--drop-layer", "18", "--samples", "1"], "there is no layer 18: this network has 17, from 1 ("),
        ("ablation", ["--runs", "1"], "expected at least two runs of a random curve"),
        ("spectrum", ["--group-size", "0"], "expected a group of at least one channel, got 0"),
        ("norm_parameters", ["--out", "data/shapes/recipe.json"], "data/shapes/recipe.json: expected a folder"),
        ("spectrum", ["--out", "data/shapes/recipe.json/new"], "data/shapes/recipe.json/new: expected a folder"),
    ],
)
def test_a_wrong_argument_ends_with_one_line_and_status_2(there, tool, capsys, name, arguments, said):
    before = sorted(path.name for path in there.folder.rglob("*"))
    assert tool(name, *there.classifier, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and error.count("\n") == 1
    assert sorted(path.name for path in there.folder.rglob("*")) == before


@pytest.mark.parametrize("taken", ["config", "picture"])
def test_a_report_takes_the_place_of_no_config_and_no_folder(there, tool, tmp_path, capsys, taken):
    config, checkpoint = there.classifier
    report, picture = tmp_path / "norm_parameters.json", tmp_path / "norm_parameters.png"
    if taken == "config":
        Config.fromfile(config).dump(report)
        config = report
    else:
        picture.mkdir()
    before = report.read_bytes() if taken == "config" else None
    assert tool("norm_parameters", config, checkpoint, "--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {report if before else picture}: is ") and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [report if before else picture]
    assert before is None or report.read_bytes() == before


def test_a_setting_without_a_value_is_a_wrong_argument(there, tool, capsys):
    assert tool("norm_parameters", *there.classifier, "--cfg-options", "model.backbone.depth=18", "depth") == 2
    assert capsys.readouterr().err.endswith("error: argument --cfg-options: expected key=value, got 'depth'\n")


@pytest.mark.parametrize(("name", "lacks"), [("norm_parameters", "model with"), ("spectrum", "test_dataloader")])
def test_an_empty_config_ends_with_one_line_and_status_2(there, tool, tmp_path, capsys, name, lacks):
    (tmp_path / "none.py").write_text("x = 1\n")
    assert tool(name, tmp_path / "none.py", there.classifier[1], "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"none.py has no {lacks}" in error and error.count("\n") == 1


def test_a_path_may_have_an_equals_sign_in_it(there, tool, tmp_path):
    config, checkpoint = tmp_path / "a=b.py", tmp_path / "w=1.pth"
    config.write_text(f"_base_ = [{there.classifier[0]!r}]\n")
    checkpoint.write_bytes(Path(there.classifier[1]).read_bytes())
    assert tool("norm_parameters", config, checkpoint, "--out", tmp_path / "o=p") == 0
    assert report_of(tmp_path / "o=p", "norm_parameters")["config"] == str(config)


@pytest.mark.parametrize("name", ["inhibited_channels", "ablation", "norm_parameters", "spectrum"])
@pytest.mark.parametrize("missing", ["config", "checkpoint"])
def test_a_missing_file_ends_with_one_line_and_status_2(there, tool, capsys, name, missing):
    config, checkpoint = there.classifier
    arguments = ("none.py", checkpoint) if missing == "config" else (config, "none.pth")
    assert tool(name, *arguments) == 2
    error = capsys.readouterr().err
    assert "there is no such" in error and "none." in error and error.count("\n") == 1


def test_a_checkpoint_that_lies_elsewhere_needs_a_folder_to_write_to(tool, capsys):
    assert tool("norm_parameters", "config.py", "https://example.org/epoch_3.pth") == 2
    assert "say where to write: --out FOLDER" in capsys.readouterr().err


def test_a_table_has_the_single_values_under_their_names():
    rows = [dict(norm="bn1", share=0.5, values=[1, 2]), dict(norm="layer1", share=None, values=None)]
    assert table(rows) == "norm    share\nbn1     0.500\nlayer1  -"
