"""What cannot be exported ends with one line that says why, before anything is written."""
import copy
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor
from mmpretrain.models.backbones import LeNet5
from torch import nn

from ce_mm.export import export
from ce_mm.export import subject as subjects
from ce_mm.export.formats import FORMATS
from ce_mm.export.pictures import Preparation

TOOL = Path(__file__).resolve().parents[2] / "tools/export.py"


@pytest.fixture
def tool(monkeypatch):
    """Run tools/export.py; its exit status."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", [str(TOOL), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TOOL), run_name="__main__")
        return end.value.code

    return run


def test_the_tool_says_what_it_wrote(small, tool, tmp_path, capsys):
    subject, out = small("resnet"), tmp_path / "c.pt"
    assert tool(subject.config, subject.checkpoint, "--format", "torchscript", "--out", out) == 0
    said = capsys.readouterr().out
    assert "scores: float32 (batch, classes), softmax" in said
    assert f"Written to {out}. On 20 random inputs of 3 sizes and 3 batch sizes, it differs" in said
    assert out.is_file()


def test_an_unknown_format_is_named_with_those_there_are(small, tool, tmp_path, capsys):
    subject = small("resnet")
    assert tool(subject.config, subject.checkpoint, "--format", "coreml", "--out", tmp_path / "c") == 2
    assert "'coreml'" in (error := capsys.readouterr().err) and "exported-program" in error
    with pytest.raises(ValueError, match="no format 'coreml'; expected one of onnx, torchscript, exported-program"):
        export(subject.config, subject.checkpoint, "coreml", tmp_path / "c")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(config="absent.py"), "config file absent.py: there is no such file"),
        (dict(checkpoint="absent.pth"), "absent.pth: there is no such checkpoint"),
        (dict(out="c.onnx"), "c.onnx: expected the name of a file to write, ending in .pt for torchscript"),
        (dict(out="none/c.pt"), "none/c.pt: the folder none does not exist; make it first"),
    ],
)
def test_a_wrong_path_ends_with_one_line_and_status_2(small, tool, tmp_path, monkeypatch, capsys, changes, said):
    monkeypatch.chdir(tmp_path)
    given = dict(config=small("resnet").config, checkpoint=small("resnet").checkpoint, out="c.pt") | changes
    assert tool(given["config"], given["checkpoint"], "--format", "torchscript", "--out", given["out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "options", "said"),
    [
        ("c.pt", [], "c.pt: is there already, and is not replaced"),
        ("weights.pt", ["--overwrite"], "weights.pt: is {folder}/weights.pt, from which it would be made"),
        ("sub/../weights.pt", ["--overwrite"], "weights.pt: is {folder}/weights.pt, from which it would be made"),
        ("sub", ["--overwrite"], "sub: expected the name of a file to write, ending in .pt for torchscript"),
        ("sub.pt", ["--overwrite"], "sub.pt: is a folder"),
    ],
)
def test_what_is_there_is_kept(small, tool, tmp_path, capsys, out, options, said):
    weights = tmp_path / "weights.pt"
    for path in (weights, tmp_path / "c.pt"):
        shutil.copy(small("resnet").checkpoint, path)
    for folder in ("sub", "sub.pt"):
        (tmp_path / folder).mkdir()
    before = weights.read_bytes()
    arguments = small("resnet").config, weights, "--format", "torchscript", "--out", tmp_path / out, *options
    assert tool(*arguments) == 2
    assert said.format(folder=tmp_path) in capsys.readouterr().err
    assert weights.read_bytes() == (tmp_path / "c.pt").read_bytes() == before


@pytest.mark.parametrize("kind", FORMATS)
def test_a_graph_with_operators_of_this_package_is_refused(small, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(subjects, "fold", lambda model: copy.deepcopy(model).eval())
    out = tmp_path / f"c{FORMATS[kind].suffix}"
    said = f"cannot be exported as {kind} .*{'Python function' if kind == 'torchscript' else 'it calls ce_mm::'}"
    with pytest.raises(ValueError, match=said) as refusal:
        export(small("resnet").config, small("resnet").checkpoint, kind, out)
    assert "\n" not in str(refusal.value) and not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_network_is_refused(small, tmp_path):
    with pytest.raises(ValueError, match="does not fit the model"):
        export(small("resnet").config, small("mobilenet").checkpoint, "torchscript", tmp_path / "c.pt")
    assert not list(tmp_path.iterdir())


def test_a_config_of_a_backbone_alone_is_refused(small, tmp_path):
    config = tmp_path / "backbone.py"
    config.write_text("model = dict(backbone=dict(type='CEResNet', depth=18))")
    with pytest.raises(ValueError, match=r"backbone\.py has no model with a type; expected the config of a network"):
        export(str(config), small("resnet").checkpoint, "torchscript", tmp_path / "b.pt", backbone=True)


def test_a_checkpoint_with_code_in_it_is_refused(small, tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return exec, ("open('ran', 'w')",)

    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={}, meta=Evil()), "evil.pth")
    with pytest.raises(ValueError, match="more than data"):
        export(small("resnet").config, "evil.pth", "torchscript", tmp_path / "c.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_lacks_is_named_before_any_work_is_done(tool, small, tmp_path, monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    subject = small("resnet")
    assert tool(subject.config, "absent.pth", "--format", "onnx", "--out", tmp_path / "c.onnx") == 2
    error = capsys.readouterr().err
    assert f"the format onnx needs the package {package}, which cannot be imported" in error
    assert 'pip install "ce_mm[export]"' in error and error.count("\n") == 1


def test_the_other_formats_need_no_more_packages(small, tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    subject = small("resnet")
    export(subject.config, subject.checkpoint, "torchscript", tmp_path / "c.pt")


def test_a_whole_detector_is_refused_with_the_reason(detector, tmp_path):
    with pytest.raises(ValueError, match=r"a MaskRCNN cannot be exported whole; .* values of boxes .* --backbone"):
        export(detector.config, detector.checkpoint, "onnx", tmp_path / "d.onnx")
    assert not list(tmp_path.iterdir())


def test_a_classifier_without_a_head_is_refused(make_classifier, tmp_path):
    subject = make_classifier("imagenet/shufflenet-v2-0.5x_8xb128_in1k.py", "model = dict(head=None)")
    with pytest.raises(ValueError, match=r"a classifier with no head cannot be exported whole; .* with --backbone"):
        export(subject.config, subject.checkpoint, "torchscript", tmp_path / "c.pt")


def test_a_head_with_a_prediction_of_its_own_is_refused(small, tmp_path, monkeypatch):
    subject = small("resnet")
    monkeypatch.setattr(type(subject.model.head), "_get_predictions", lambda *_: None)
    with pytest.raises(ValueError, match="a classifier with a LinearClsHead cannot be exported whole"):
        export(subject.config, subject.checkpoint, "torchscript", tmp_path / "c.pt")


def test_a_model_without_a_backbone_has_none_to_export():
    with pytest.raises(ValueError, match="a Linear has no backbone to export"):
        subjects.backbone(nn.Linear(1, 1), Config())


def test_a_preprocessor_of_another_kind_is_refused():
    class Own(BaseDataPreprocessor):
        pass

    with pytest.raises(ValueError, match="the data_preprocessor Own cannot be exported; expected ClsDataPreprocessor"):
        Preparation(Own(), reads_rgb=False)


@pytest.mark.parametrize("kind", ["torchscript", "exported-program"])
def test_a_network_for_one_size_of_pictures_is_refused(tmp_path, kind):
    config = tmp_path / "lenet.py"
    config.write_text(
        "default_scope = 'mmpretrain'\n"
        "backbone, head = dict(type='LeNet5', num_classes=10), dict(type='ClsHead')\n"
        "model = dict(type='ImageClassifier', backbone=backbone, head=head)\n"
    )
    torch.save(LeNet5(num_classes=10).state_dict(prefix="backbone."), tmp_path / "lenet.pth")
    out = tmp_path / f"lenet{FORMATS[kind].suffix}"
    said = r"does not run on pictures of 1×1×64×64: .*; only networks that take pictures of any size"
    with pytest.raises(ValueError, match=said) as refusal:
        export(str(config), str(tmp_path / "lenet.pth"), kind, out)
    assert "\n" not in str(refusal.value) and not out.exists()
