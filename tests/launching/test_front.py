"""The fronts of upstream's tools: whose tool runs, whose options apply, and what keeps a run from starting."""
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ce_mm.launching import front, launch

ROOT = Path(__file__).resolve().parents[2]
TINY_CLASSIFIER = """
default_scope = "mmpretrain"
custom_imports = dict(imports=["ce_mm"])
pipeline = [dict(type="LoadImageFromFile"), dict(type="PackInputs")]
model = dict(
    type="ImageClassifier", backbone=dict(type="LeNet5", num_classes=2), head=dict(type="ClsHead"),
    data_preprocessor=dict(type="ClsDataPreprocessor", mean=[127.0], std=[64.0], num_classes=2),
)
pipeline[0].update(color_type="grayscale")
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="CustomDataset", data_root="pictures", pipeline=pipeline),
)
test_dataloader = dict(train_dataloader, sampler=dict(type="DefaultSampler", shuffle=False))
test_evaluator = dict(type="Accuracy", topk=1)
train_cfg, test_cfg = dict(by_epoch=True, max_epochs=1), dict()
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.1))
"""


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """A folder of its own; sys.argv and the variable that upstream's parser sets are restored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ce_mm train"])
    monkeypatch.setenv("LOCAL_RANK", "0")


@pytest.fixture
def upstream(monkeypatch):
    """Records whose tool starts to do what, in the order of it, in place of doing it."""
    calls = []
    load = front.load_tool

    def load_and_record(scope, task):
        tool = load(scope, task)
        monkeypatch.setattr(tool.Runner, "from_cfg", lambda cfg: SimpleNamespace(
            train=lambda: calls.append(f"{scope} train"), test=lambda: calls.append(f"{scope} test")))
        return tool

    monkeypatch.setattr(front, "load_tool", load_and_record)
    monkeypatch.setattr(front, "check", lambda task, cfg: calls.append(cfg))
    return calls


def write_config(text, name="config.py"):
    Path(name).write_text(text)
    return name


@pytest.mark.parametrize("scope", ["mmdet", "mmpretrain"])
@pytest.mark.parametrize("task", ["train", "test"])
def test_the_tool_is_upstreams_own(scope, task):
    tool = front.load_tool(scope, task)
    assert tool.__file__.endswith(os.path.join(scope, ".mim", "tools", f"{task}.py"))
    assert callable(tool.parse_args) and callable(tool.main)


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("default_scope = 'mmpretrain'", "mmpretrain"),
        ("default_scope = 'mmdet'", "mmdet"),
        ("model = dict(type='mmdet.MaskRCNN')", "mmdet"),
        ("model = dict(type='mmpretrain.ImageClassifier')", "mmpretrain"),
        ("default_scope = 'mine'\nmodel = dict(type='mmdet.MaskRCNN')", "mmdet"),
        ("from mmpretrain.models import ImageClassifier\nmodel = dict(type=ImageClassifier)", "mmpretrain"),
        ("from mmdet.models import MaskRCNN\ndefault_scope = None\nmodel = dict(type=MaskRCNN)", "mmdet"),
    ],
)
def test_the_scope_or_the_model_of_the_config_decides_whose_tool_runs_after_the_checks(upstream, text, scope):
    assert launch("train", [write_config(text), "--cfg-options", "a=b.py"]) == 0
    cfg, started = upstream
    assert started == f"{scope} train" and cfg.a == "b.py"


def test_a_config_without_ce_starts_without_a_gpu_too(upstream, monkeypatch):
    monkeypatch.setattr(front, "launch_without_gpu", lambda: upstream.append("launchers"))
    launch("test", [write_config("default_scope = 'mmpretrain'"), "a.pth"])
    assert upstream[1:] == ["launchers", "mmpretrain test"]


def test_a_config_may_derive_from_others_in_pure_python(upstream):
    write_config("from mmpretrain.models import ImageClassifier\nmodel = dict(type=ImageClassifier)", "base.py")
    derived = "from mmengine.config import read_base\nwith read_base():\n    from .base import *\nmodel.update(a=1)"
    assert launch("train", [write_config(derived)]) == 0
    assert upstream[1] == "mmpretrain train"


@pytest.mark.parametrize("name", ["lr=0.1.py", "config.json", "config.yaml", "two words.yml"])
def test_a_config_is_a_file_of_any_kind_and_name(upstream, name):
    text = "default_scope = 'mmdet'" if name.endswith(".py") else '{"default_scope": "mmdet"}'
    assert launch("train", ["--work-dir", "out", write_config(text, name), "--cfg-options", "x.y=1"]) == 0
    assert upstream[0].x == dict(y=1) and upstream[0].work_dir == "out"


@pytest.mark.parametrize(
    ("config", "scope"),
    [
        ("ce_mm::shapes/ce-resnet18_shapes.py", "mmpretrain"),
        ("ce_mm::shapes/mask-rcnn_ce-r18_fpn_shapes.py", "mmdet"),
        ("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py", "mmdet"),
    ],
)
def test_a_config_may_be_one_that_a_package_has_installed(upstream, config, scope):
    assert launch("test", ["--cfg-options", f"a={config}", "--", config, "a.pth"]) == 0
    cfg, started = upstream
    assert started == f"{scope} test" and cfg.a == config
    assert cfg.work_dir == f"./work_dirs/{Path(config).stem}"


@pytest.mark.parametrize(
    "argv",
    [
        ["--cfg-options", "a=other.py", "b=2", "--launcher", "none", "config.py"],
        ["--cfg-options", "a=other.py", "--", "config.py"],
        ["--work-dir", "other.py", "config.py"],
        ["--work-dir=other.py", "--resume", "--", "config.py"],
    ],
)
def test_the_config_is_what_upstreams_parser_takes_for_it(upstream, argv):
    write_config("default_scope = 'mmdet'")
    write_config("default_scope = 'mmpretrain'", "other.py")
    assert launch("train", argv) == 0
    assert upstream[1] == "mmdet train"


def test_the_checks_see_what_upstream_makes_of_its_options(upstream):
    config = write_config(TINY_CLASSIFIER)
    assert launch("train", [config, "--amp", "--no-validate", "--resume", "a.pth", "--work-dir", "out"]) == 0
    cfg = upstream[0]
    assert cfg.optim_wrapper.type == "AmpOptimWrapper" and cfg.val_cfg is None
    assert (cfg.resume, cfg.load_from, cfg.work_dir) == (True, "a.pth", "out")
    assert launch("test", [config, "b.pth", "--tta"]) == 0
    cfg = upstream[2]
    assert cfg.load_from == "b.pth" and cfg.model.type == "mmpretrain.AverageClsScoreTTA"
    assert cfg.work_dir == os.path.join("./work_dirs", "config")


def test_help_with_a_config_is_upstreams(capsys):
    with pytest.raises(SystemExit) as end:
        launch("train", [write_config("default_scope = 'mmpretrain'"), "--help"])
    assert end.value.code == 0
    assert "--no-persistent-workers" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "code"), [(["--help"], 0), ([], 2)])
def test_without_a_config_upstream_s_parser_speaks_at_once(capsys, argv, code):
    with pytest.raises(SystemExit) as end:
        launch("test", argv)
    assert end.value.code == code
    assert "usage: ce_mm train" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["absent.py"], "config file absent.py: there is no such file"),
        (["no_suffix"], "config file no_suffix: there is no such file"),
        (["ce_mm::absent.py"], "config ce_mm::absent.py: there is no such config; expected one below "),
        (["broken.py"], "config file broken.py: "),
        (["raising.py"], "config file raising.py: RuntimeError: one two\n"),
        (["baseless.py"], "config file baseless.py: FileNotFoundError"),
        (["scopeless.py"], "default_scope is None, and its model is of no library that is known here; expected the "
         "default_scope 'mmpretrain' or 'mmdet'"),
        (["other_scope.py"], "default_scope is 'mmseg', and its model is of no library"),
        (["--cfg-options", "a=1", "plain.py"], "--cfg-options takes all words up to the next option"),
        (["plain.py", "--auto-scale-lr"], "this config with these options: RuntimeError: Can not find"),
        (["plain.py", "--amp"], "this config with these options: AttributeError: "),
        (["plain.py", "--cfg-options", "default_scope.a=1"], "this config with these options: "),
    ],
)
def test_a_command_line_that_starts_no_run_is_one_error(capsys, argv, said):
    write_config("a = (", "broken.py")
    write_config("raise RuntimeError('one\\ntwo')", "raising.py")
    write_config("_base_ = 'nowhere.py'", "baseless.py")
    write_config("model = dict(type='Unknown')", "scopeless.py")
    write_config("default_scope = 'mmseg'", "other_scope.py")
    write_config("default_scope = 'mmdet'", "plain.py")
    before = sorted(os.listdir())
    assert launch("train", argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "results.json"], "this config with these options: AssertionError: The dump file must be"),
        (["--show-dir", "drawn"], "this config with these options: "),
    ],
)
@pytest.mark.parametrize("scope", ["mmdet", "mmpretrain"])
def test_what_upstream_refuses_only_with_its_runner_built_is_said_before(capsys, scope, options, said):
    config = write_config(f"default_scope = '{scope}'\ndefault_hooks = dict()")
    assert launch("test", [config, "a.pth", *options]) == 2
    assert capsys.readouterr().err.startswith("error: ") and os.listdir() == [config]


def test_a_package_without_its_tools_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["mmpretrain"], "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(front.PreflightError, match="mmpretrain was installed without its tools"):
        front.load_tool("mmpretrain", "train")


def make_pictures():
    for category in ("cat", "dog"):
        Path("pictures", category).mkdir(parents=True)
        for number in range(2):
            Image.new("L", (32, 32), 100 * number).save(f"pictures/{category}/{number}.png")


def run_tool(name, *args):
    return subprocess.run(
        [sys.executable, ROOT / "tools" / name, *args], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )


def test_the_tools_train_and_test_with_upstreams_options():
    write_config(TINY_CLASSIFIER)
    make_pictures()
    trained = run_tool("train.py", "config.py", "--work-dir", "out", "--no-pin-memory")
    assert trained.returncode == 0, trained.stderr
    assert Path("out/epoch_1.pth").exists()
    tested = run_tool("test.py", "config.py", "out/epoch_1.pth", "--out", "metrics.json", "--out-item", "metrics")
    assert tested.returncode == 0, tested.stderr
    assert "accuracy" in Path("metrics.json").read_text()


PURE_PYTHON = """
from mmengine.dataset import DefaultSampler
from mmengine.optim import OptimWrapper
from mmpretrain.datasets import CustomDataset, LoadImageFromFile, PackInputs
from mmpretrain.models import ClsDataPreprocessor, ClsHead, ImageClassifier, LeNet5
from torch.optim import SGD

default_scope = None
model = dict(
    type=ImageClassifier, backbone=dict(type=LeNet5, num_classes=2), head=dict(type=ClsHead),
    data_preprocessor=dict(type=ClsDataPreprocessor, mean=[127.0], std=[64.0], num_classes=2),
)
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=CustomDataset, data_root="pictures",
        pipeline=[dict(type=LoadImageFromFile, color_type="grayscale"), dict(type=PackInputs)],
    ),
)
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.1))
"""


def test_a_config_in_pure_python_and_of_an_odd_name_trains():
    write_config(PURE_PYTHON, "lr=0.1.py")
    make_pictures()
    trained = run_tool("train.py", "--work-dir", "out", "--no-persistent-workers", "lr=0.1.py")
    assert trained.returncode == 0, trained.stderr
    assert Path("out/epoch_1.pth").exists()


def test_a_tool_says_in_one_line_what_this_machine_does_not_have(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_config(TINY_CLASSIFIER)
    make_pictures()
    refused = run_tool("train.py", "config.py", "--work-dir", "out", "--amp")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: optim_wrapper cannot be built: AssertionError: ")
    assert "gpu" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr and not Path("out").exists()


def test_a_refused_run_leaves_no_folder_behind(capsys):
    write_config(TINY_CLASSIFIER)
    make_pictures()
    torch.save({"weight": torch.zeros(1)}, "other.pth")
    assert launch("test", ["config.py", "other.pth", "--work-dir", "out"]) == 2
    assert capsys.readouterr().err.startswith("error: other.pth does not fit the model of config.py: ")
    assert sorted(os.listdir()) == ["config.py", "other.pth", "pictures"]


@pytest.mark.parametrize("name", ["train.py", "test.py"])
def test_ctrl_c_ends_a_tool_with_130_and_no_traceback(monkeypatch, name):
    def interrupted(task, argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("ce_mm.launching.launch", interrupted)
    source = (ROOT / "tools" / name).read_text()
    with pytest.raises(SystemExit) as end:
        exec(compile(source, name, "exec"), {"__name__": "__main__"})
    assert end.value.code == 130
