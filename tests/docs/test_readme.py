"""README: it is short, its code runs in a checkout that stays clean, and its one table is that of the records.

What stands in, as no test has eight GPUs, ImageNet and COCO: weights are random; COCO is six drawn images under its
names; of the trainings and tests all is run up to the runner's start: the command lines are parsed by upstream's
parsers, the config is built, and data, model and checkpoints are looked at (tests/test_end_to_end.py trains and tests a
step of the real thing). pip resolves its line without fetching anything. In the demo a recorder stands for Python; the
tests are this run.
"""
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from authors_layout import authors_shapes, authors_weights
from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from pages import ROOT, blocks, commands, of_the_package, text_of
from weights import write_checkpoint

from ce_mm.__main__ import main
from ce_mm.datasets.shapes import make_shapes
from ce_mm.launching import front
from ce_mm.layers import CENorm

PAGE = text_of("README.md")
BASH = commands("README.md")
NAMES = ("person", "car", "dog", "cat", "cup", "book")
"""Of COCO, for the six shapes."""
OURS = [ours for words in BASH if (ours := of_the_package(words))]


def config_of(block, folder):
    """A config block as a file, read."""
    path = folder / "config.py"
    path.write_text(block, encoding="utf-8")
    return Config.fromfile(path)


def example(first_line):
    (block,) = (code for _, code in blocks("README.md") if code.startswith(first_line))
    return block


def test_it_is_short_and_installs_at_once():
    assert 6000 <= len(PAGE.encode()) <= 8200
    assert PAGE.encode().index(b"pip install") < 1500


def test_it_asks_for_nothing_else_than_is_tested_here():
    assert [words[0] for words in BASH] == ["pip", "pip", "ce_mm", "ce_mm", "ce_mm", "ce_mm", "bash", "bash"]
    assert len(list(blocks("README.md"))) == 3


@pytest.mark.parametrize("words", [words for words in BASH if words[0] == "pip"], ids=" ".join)
def test_pip_knows_what_is_to_be_installed(words, checkout):
    offline = ["--dry-run", "--no-deps", "--no-index", "--no-build-isolation"]
    command = [sys.executable, "-m", *words, *offline]
    run = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "does not provide the extra" not in run.stderr


@pytest.fixture
def backbone(tmp_path):
    """The backbone of the first example, without the file that it starts from."""
    settings = config_of(example('_base_ = "mmdet::retinanet/'), tmp_path).model.backbone
    assert settings.init_cfg.checkpoint == "torchvision://resnet50"
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(settings | dict(init_cfg=None))


def test_every_average_of_ce_moves_in_training(backbone):
    layers = [module for module in backbone.train().modules() if isinstance(module, CENorm)]
    before = [(m.bd.running_whitening.clone(), m.ir.running_inv_std_scale.clone()) for m in layers]
    backbone(torch.randn(2, 3, 64, 64))
    assert len(layers) == 14
    for layer, (whitening, inv_std_scale) in zip(layers, before, strict=True):
        assert not torch.equal(layer.bd.running_whitening, whitening)
        assert not torch.equal(layer.ir.running_inv_std_scale, inv_std_scale)


def test_by_norm_cfg_ce_is_in_the_neck_and_in_the_mask_head(tmp_path):
    model = config_of(example('_base_ = "mmdet::mask_rcnn/'), tmp_path).model
    with DefaultScope.overwrite_default_scope("mmdet"):
        neck, head = (MODELS.build(part) for part in (model.neck, model.roi_head.mask_head))
    neck, head = revert_sync_batchnorm(neck), revert_sync_batchnorm(head)  # as mmengine does in one process
    assert [sum(isinstance(module, CENorm) for module in part.modules()) for part in (neck, head)] == [8, 4]
    maps = neck([torch.randn(2, 256 * 2**i, 32 // 2**i, 32 // 2**i) for i in range(4)])
    masks = head(torch.randn(2, 256, 14, 14))
    assert len(maps) == 5 and masks.shape == (2, 80, 28, 28)
    assert all(map_.isfinite().all() for map_ in (*maps, masks))


@pytest.fixture(scope="module")
def with_data(checkout):
    """The checkout with what the commands take: COCO's names over drawn images, and random weights."""
    coco = make_shapes(checkout / "data/coco", num_train=3, num_val=3, num_crops=6)
    for split in ("train", "val"):
        (coco / split).rename(coco / f"{split}2017")
        annotations = json.loads((coco / f"annotations/{split}.json").read_text())
        for category, name in zip(annotations["categories"], NAMES, strict=True):
            category["name"] = name
        (coco / f"annotations/instances_{split}2017.json").write_text(json.dumps(annotations))
    for split in ("train", "val"):
        (checkout / "data/imagenet" / split / "n01440764").mkdir(parents=True)
    (checkout / "downloads").mkdir()
    torch.save(dict(state_dict=authors_weights(authors_shapes(8))), checkout / "downloads/cenet_resnet50.pth")
    for name in ("imagenet/ce-resnet50_8xb32_in1k/epoch_100", "coco/mask-rcnn_ce-r50_fpn_2x_coco/epoch_24"):
        folder, run, file = name.split("/")
        write_checkpoint(f"ce_mm::{folder}/{run}.py", checkout / "work_dirs" / run / f"{file}.pth")
    return checkout


@pytest.fixture
def started(with_data, as_in_a_new_process, monkeypatch):
    """Runs a command in the checkout; returns its exit code, and the config with which a runner would have started."""
    configs = []
    load = front.load_tool

    def load_and_record(scope, task):
        tool = load(scope, task)
        start = SimpleNamespace(train=lambda: None, test=lambda: None, test_evaluator=SimpleNamespace(metrics=[]))
        monkeypatch.setattr(tool.Runner, "from_cfg", lambda cfg: configs.append(cfg) or start)
        return tool

    monkeypatch.setattr(front, "load_tool", load_and_record)
    monkeypatch.chdir(with_data)
    return lambda words: (main(words), configs)


@pytest.mark.parametrize("words", [words for words in OURS if words[0] in ("train", "test")], ids=" ".join)
def test_a_training_or_a_test_would_start(words, started, capfd):
    code, configs = started(words)
    assert code == 0, capfd.readouterr().err
    (cfg,) = configs
    assert Path(cfg.work_dir).name == Path(words[1].partition("::")[2]).stem


def test_the_weights_are_converted(started, with_data):
    (words,) = (words for words in OURS if words[0] == "convert")
    code, _ = started(words)
    assert code == 0
    assert (with_data / words[2]).is_file() and (with_data / words[2]).with_suffix(".py").is_file()


@pytest.mark.parametrize("inline", re.findall(r"`(torchrun [^`]+)`", PAGE))
def test_torchrun_knows_its_line(inline):
    from torch.distributed.run import parse_args

    args = parse_args(inline.split()[1:])
    assert args.module and args.training_script == "ce_mm" and args.nproc_per_node == "8"


def test_the_demo_leaves_the_checkout_clean(checkout, tmp_path):
    python = checkout / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    log = tmp_path / "log"
    says = f'echo "$1" >> "{log}"'
    writes = 'while [ $# -gt 1 ]; do [ "$1" != --out ] || touch "$2"; shift; done'
    python.write_text(f"#!/usr/bin/env bash\n{says}\n{writes}\n")
    python.chmod(0o755)
    (tmp_path / "python3").write_text("#!/usr/bin/env bash\n")  # for the set-up
    (tmp_path / "python3").chmod(0o755)
    environment = dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}")
    run = subprocess.run(["bash", "tools/demo.sh"], cwd=checkout, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    tools = [Path(line).name for line in log.read_text().splitlines()]
    assert tools == [
        "make_shapes.py", "train.py", "train.py", "test.py", "plot_training.py", "draw_predictions.py", "eval_coco.py",
    ]  # fmt: skip
    table = [line for line in run.stdout.splitlines() if line.startswith("|")]
    recorded = [["| 3", pictures, kind] for pictures in ("80", "1000") for kind in ("box", "mask")]
    assert [line.split(" | ")[:3] for line in table] == [["| epochs", "pictures", "AP"], *recorded]


def records(name):
    return json.loads((ROOT / f"docs/{name}.json").read_text())


def test_the_table_is_that_of_the_records():
    runs = records("benchmark/network")["records"].values()
    compiled = [run for run in runs if "CE compiled" in str(run["networks"])]
    networks = max(compiled, key=lambda run: run["machine"]["date"])["networks"]
    rows = records("complexity")["rows"]
    counted = {(Path(row["config"]).name, row["all_stages"]): row["inference"] for row in rows}

    def row(network, variant, config, baseline, all_stages=False):
        """Figures as the table has them: counted of a config and its baseline, measured of a network."""
        ours, base = counted[f"{config}.py", all_stages], counted[f"{baseline}.py", False]
        of_config = [ours[key] / base[key] for key in ("parameters", "total")]
        of_network = [networks[network][variant][key]["ratio"] for key in ("step", "eval", "saved")]
        return [f"{figure:.2f}" for figure in of_config + of_network]

    figures = " ".join([r"\| ([\d.]+)"] * 5)
    stated = re.findall(rf"^\| ([^|]+) {figures} \|$", PAGE, re.MULTILINE)
    resnet, mobilenet, detector = "resnet50_8xb32_in1k", "mobilenet-v2_8xb32_in1k", "mask-rcnn_r50_fpn_2x_coco"
    assert {name: figures for name, *figures in stated} == {
        "ResNet-50": row("resnet50", "CE compiled", f"ce-{resnet}", resnet),
        "MobileNetV2, CE in all stages": row("mobilenetv2", "CE compiled", f"ce-{mobilenet}", mobilenet, True),
        "Mask R-CNN R50": row("mask-rcnn", "CE compiled", detector.replace("r50", "ce-r50"), detector),
        "ResNet-50, SE in place of CE": row("resnet50", "BN+SE", f"se{resnet}", resnet),
    }


def test_the_sentence_on_accuracy_is_that_of_the_record():
    page = (ROOT / "docs/detection/results.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d) \| 1000 \| (box|mask) \|.*\| ([^|]+ ± [^|]+) \|$", page, re.MULTILINE)
    gains = {(int(epochs), kind): gain for epochs, kind, gain in rows}
    three, nine = ((gains[epochs, "box"], gains[epochs, "mask"]) for epochs in (3, 9))
    words = " ".join(PAGE.split())
    assert f"gains {three[0]} points of box AP and {three[1]} of mask AP over BN after three epochs" in words
    assert f"{nine[0]} and {nine[1]} after nine" in words
