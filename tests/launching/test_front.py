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
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("LOCAL_RANK", "0")


@pytest.fixture
def upstream(monkeypatch):
    """A stand-in for upstream's tool and for the checks; records the order of what is called."""
    calls = []
    tool = SimpleNamespace(
        parse_args=lambda: calls.append("parse") or SimpleNamespace(config=sys.argv[1]),
        main=lambda: calls.append("main"),
    )
    monkeypatch.setattr(front, "load_tool", lambda scope, task: calls.append(f"{scope} {task}") or tool)
    monkeypatch.setattr(front, "check", lambda task, cfg, args: calls.append("check"))
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


def test_the_scope_of_the_config_decides_whose_tool_runs_after_the_checks(upstream):
    config = write_config("default_scope = 'mmpretrain'")
    assert launch("train", [config, "--cfg-options", "a=b.py"]) == 0
    assert upstream == ["mmpretrain train", "parse", "check", "main"]
    assert sys.argv == ["train.py", config, "--cfg-options", "a=b.py"]


def test_a_config_without_ce_starts_without_a_gpu_too(upstream, monkeypatch):
    monkeypatch.setattr(front, "launch_without_gpu", lambda: upstream.append("launchers"))
    launch("test", [write_config("default_scope = 'mmpretrain'")])
    assert upstream[-2:] == ["launchers", "main"]


def test_the_config_is_the_first_argument_that_ends_like_one_and_sets_nothing(upstream):
    write_config("default_scope = 'mmdet'")
    launch("train", ["--cfg-options", "other=config2.py", "config.py"])
    assert upstream[0] == "mmdet train"


def test_help_with_a_config_is_upstreams(capsys):
    with pytest.raises(SystemExit) as end:
        launch("train", [write_config("default_scope = 'mmpretrain'"), "--help"])
    assert end.value.code == 0
    assert "--no-persistent-workers" in capsys.readouterr().out


def test_help_without_a_config_says_where_the_options_are_listed(capsys):
    assert launch("test", ["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python tools/test.py CONFIG")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "no config file is given"),
        (["absent.py"], "config file absent.py: there is no such file"),
        (["broken.py"], "config file broken.py: "),
        (["baseless.py"], "config file baseless.py: FileNotFoundError"),
        (["scopeless.py"], "default_scope is None; expected 'mmdet' or 'mmpretrain'"),
        (["other_scope.py"], "default_scope is 'mmseg'; expected 'mmdet' or 'mmpretrain'"),
        (["--work-dir", "plain.py", "scopeless.py"], "plain.py was taken for the config, but it is scopeless.py"),
    ],
)
def test_a_command_line_that_names_no_usable_config_is_refused(capsys, argv, said):
    write_config("a = (", "broken.py")
    write_config("_base_ = 'nowhere.py'", "baseless.py")
    write_config("a = 1", "scopeless.py")
    write_config("default_scope = 'mmseg'", "other_scope.py")
    write_config("default_scope = 'mmpretrain'", "plain.py")
    before = sorted(os.listdir())
    assert launch("train", argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error
    assert sorted(os.listdir()) == before


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
