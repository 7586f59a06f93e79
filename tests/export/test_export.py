"""An exported file computes what the model's own prediction is, and says what it takes and gives."""
import json
import math

import onnx
import onnxruntime
import pytest
import torch

from ce_mm.export import export, exporting
from ce_mm.export import subject as subjects
from ce_mm.export.check import random_pictures
from ce_mm.export.formats import FORMATS

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
KINDS = list(FORMATS)
CLASSES = ["circle", "cross", "ring", "square", "star", "triangle"]
# The others in ONNX, which goes by way of the exported program, are in test_acceptance.py.
SUBJECTS = [*(("resnet", kind) for kind in KINDS), ("mobilenet", "torchscript"), ("shufflenet", "torchscript")]
SHUFFLENET = "imagenet/ce-shufflenet-v2-0.5x_8xb128_in1k.py"
SN = "model = dict(backbone=dict(norm_cfg=dict(type='SN')))"
SEVERAL_LABELS = "dict(type='MultiLabelLinearClsHead', _delete_=True, num_classes=5, in_channels=1024)"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:onnxscript")


def rgb_pictures(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    colours = torch.rand(shape[0], shape[1], 1, 1, generator=generator)
    return (pictures * colours).round().to(torch.uint8)


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def load(path, kind):
    """The file in its runtime, by that runtime's own calls: pictures -> list of tensors."""
    if kind == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda x: [torch.from_numpy(y) for y in session.run(None, {"pictures": x.numpy()})]
    if kind == "torchscript":
        return torch.jit.load(path)
    return torch.export.load(path).module()


def metadata(path, kind):
    if kind == "onnx":
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    extra = {"ce_mm.json": ""}
    if kind == "torchscript":
        torch.jit.load(path, _extra_files=extra)
    else:
        torch.export.load(path, extra_files=extra)
    return json.loads(extra["ce_mm.json"])


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    """The check that comes with an export takes two inputs in place of twenty."""
    monkeypatch.setattr(exporting, "random_pictures", lambda channels: random_pictures(channels, count=2))


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory):
    """name, kind -> the subject and its file, each exported once."""
    files, folder = {}, tmp_path_factory.mktemp("exported")

    def get(name, kind):
        if (name, kind) not in files:
            subject = small(name)
            out = folder / f"{name}-{kind}{FORMATS[kind].suffix}"
            files[name, kind] = export(subject.config, subject.checkpoint, kind, out)
        return small(name), files[name, kind]

    return get


@pytest.mark.parametrize(("name", "kind"), SUBJECTS)
def test_a_file_gives_the_scores_of_the_model_s_prediction_of_rgb_pictures_of_any_size(exported, name, kind):
    subject, written = exported(name, kind)
    assert 0 < written.difference < 1e-5
    network = load(written.path, kind)
    for shape in [(1, 3, 64, 64), (4, 3, 50, 77), (2, 3, 33, 128)]:
        pictures = rgb_pictures(*shape)
        as_loaded = dict(inputs=list(pictures.flip(1)))  # OpenMMLab reads files as BGR
        with torch.no_grad():
            scores, logits = network(pictures.float())
            expected = torch.stack([sample.pred_score for sample in subject.model.test_step(as_loaded)])
            of_normalised = subject.model((pictures - MEAN) / STD, mode="tensor")
        assert relative_error(scores, expected) < 1e-5
        assert relative_error(logits, of_normalised) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_says_what_it_takes_and_gives(exported, kind):
    _, written = exported("resnet", kind)
    found = metadata(written.path, kind)
    assert found == written.metadata
    assert found["pictures"] == (
        "float32 (batch, 3, height, width), RGB, 0 to 255; mean and std are applied inside"
    )
    assert found["scores"] == "float32 (batch, classes), softmax of the logits"
    assert json.loads(found["classes"]) == CLASSES
    steps = json.loads(found["test_pipeline"])
    assert [step["type"] for step in steps] == ["LoadImageFromFile", "ResizeEdge", "CenterCrop"]
    assert steps[2]["crop_size"] == 224


def test_an_onnx_file_names_its_axes_and_holds_no_path_of_this_machine(exported):
    _, written = exported("resnet", "onnx")
    graph = onnx.load(written.path).graph
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    assert axes == dict(pictures=["batch", 3, "height", "width"], scores=["batch", 6], logits=["batch", 6])
    assert {node.domain for node in graph.node} == {""}  # ONNX's own operators
    assert b".py" not in written.path.read_bytes().replace(b"config.py", b"")


def test_a_backbone_of_a_detector_gives_the_maps_that_the_neck_gets(detector, tmp_path):
    written = export(detector.config, detector.checkpoint, "exported-program", tmp_path / "b.pt2", backbone=True)
    pictures = rgb_pictures(2, 3, 75, 130)
    given = detector.model.data_preprocessor(dict(inputs=list(pictures.flip(1))))["inputs"]
    assert given.shape == (2, 3, 96, 160)  # padded
    with torch.no_grad():
        maps, expected = torch.export.load(written.path).module()(pictures.float()), detector.model.backbone(given)
    assert [y.shape for y in maps] == [y.shape for y in expected]
    assert all(relative_error(ours, theirs) < 1e-5 for ours, theirs in zip(maps, expected, strict=True))
    assert written.metadata["map3"] == "float32 (batch, 256, h, w), stride 32"
    assert "padded to a multiple of 32" in written.metadata["pictures"]
    assert "classes" not in written.metadata


def test_a_backbone_of_a_classifier_is_exported_too(small, tmp_path):
    subject = small("mobilenet")
    written = export(subject.config, subject.checkpoint, "torchscript", tmp_path / "b.pt", backbone=True)
    pictures = rgb_pictures(2, 3, 64, 96)
    with torch.no_grad():
        (ours,) = torch.jit.load(written.path)(pictures.float())
        (theirs,) = subject.model.backbone((pictures - MEAN) / STD)
    assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize(
    ("base", "lines"),
    [
        ("imagenet/shufflenet-v2-0.5x_8xb128_in1k.py", "data_preprocessor = dict(to_rgb=False)"),
        ("cifar10/ce-vgg16bn_1xb256_cifar10.py", ""),
        (SHUFFLENET, "data_preprocessor = dict(mean=None, std=None)"),
        (SHUFFLENET, f"model = dict(head={SEVERAL_LABELS})"),
        (SHUFFLENET, SN),
    ],
    ids=["trained on BGR, without CE", "data in RGB", "no normalisation", "several labels", "SN outside CE"],
)
def test_every_file_takes_rgb_and_gives_the_model_s_own_scores(make_classifier, tmp_path, base, lines):
    subject = make_classifier(base, lines)
    written = export(subject.config, subject.checkpoint, "torchscript", tmp_path / "c.pt")
    pictures = rgb_pictures(2, 3, 64, 64)
    as_loaded = pictures if "cifar" in base else pictures.flip(1)
    with torch.no_grad():
        scores, _ = torch.jit.load(written.path)(pictures.float())
        expected = torch.stack([sample.pred_score for sample in subject.model.test_step(dict(inputs=list(as_loaded)))])
    assert relative_error(scores, expected) < 1e-5


@pytest.mark.parametrize("recorded", [{}, *(dict(classes=names) for names in (5, [1] * 6, CLASSES[:5]))], ids=str)
def test_names_that_are_not_one_for_each_class_are_left_out(recorded):
    assert exporting._classes(recorded, 6) == {}
    assert json.loads(exporting._classes(dict(classes=CLASSES), 6)["classes"]) == CLASSES


def test_a_file_there_is_replaced_where_that_is_wanted(small, tmp_path):
    subject, out = small("resnet"), tmp_path / "c.pt"
    out.write_text("older")
    export(subject.config, subject.checkpoint, "torchscript", out, overwrite=True)
    assert out.stat().st_size > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_a_file_that_computes_something_else_is_not_written(small, tmp_path, monkeypatch):
    def wrongly(model):
        folded = right(model)
        folded.backbone.bn1.matrix.mul_(1.01)
        return folded

    right, subject, out = subjects.fold, small("resnet"), tmp_path / "c.pt"
    monkeypatch.setattr(subjects, "fold", wrongly)
    out.write_text("older")
    with pytest.raises(ValueError, match=r"differs from .*config\.py by .*; expected at most 1e-04; nothing"):
        export(subject.config, subject.checkpoint, "torchscript", out, overwrite=True)
    assert out.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_weights_that_give_nan_are_refused(small, tmp_path):
    subject, broken = small("resnet"), tmp_path / "broken.pth"
    weights = torch.load(subject.checkpoint, weights_only=True)["state_dict"]
    weights["head.fc.bias"][0] = math.nan
    torch.save(weights, broken)
    with pytest.raises(ValueError, match="own output for random pictures is not finite"):
        export(subject.config, str(broken), "torchscript", tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()
