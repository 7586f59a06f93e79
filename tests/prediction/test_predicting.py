"""What is written for every kind of picture, what is refused, and what is left of the rest when one fails."""
import json
import runpy
from pathlib import Path

import numpy as np
import pickles
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.models import MaskRCNN
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools import mask as coco_mask

from ce_mm.checkpoints.reading import CheckpointError
from ce_mm.prediction import predict
from ce_mm.prediction.detector import Detector

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("disc", "plus", "hoop", "box", "spark", "wedge")


@pytest.fixture(scope="module")
def formats(tmp_path_factory, write_formats):
    """A folder with the scene in every format, and name -> pixels."""
    folder = tmp_path_factory.mktemp("formats")
    return folder, write_formats(folder)


@pytest.fixture(scope="module")
def results(detector, formats, tmp_path_factory):
    """All of them predicted with all that is found, one at a time; name -> its JSON file."""
    out = tmp_path_factory.mktemp("results")
    report = predict(detector.config, detector.checkpoint, [formats[0]], out, score_threshold=0, device="cpu")
    assert report.failed == []
    assert report.objects == 3 * len(formats[1])
    return {path.name: json_file for path, json_file in report.written.items()}


@pytest.fixture(scope="module")
def built(detector):
    return Detector(detector.config, detector.checkpoint, "cpu")


@pytest.fixture
def tool(monkeypatch):
    """Run tools/predict.py; its exit status."""

    def run(*arguments):
        path = str(ROOT / "tools/predict.py")
        monkeypatch.setattr("sys.argv", [path, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(path, run_name="__main__")
        return end.value.code

    return run


def test_the_json_says_what_the_picture_holds(formats, results):
    assert set(results) == set(formats[1])
    for name, path in results.items():
        found = json.loads(path.read_text())
        assert found.keys() == {"file_name", "width", "height", "score_threshold", "objects"}
        assert found["file_name"] == (formats[0] / name).as_posix()
        assert (found["width"], found["height"], found["score_threshold"]) == (60, 40, 0)
        assert len(found["objects"]) == 3
        for entry in found["objects"]:
            assert entry.keys() == {"label", "name", "score", "bbox", "mask"}
            assert entry["name"] == NAMES[entry["label"]]
            left, top, right, bottom = entry["bbox"]
            assert 0 <= left <= right <= 60 and 0 <= top <= bottom <= 40
            assert isinstance(entry["mask"]["counts"], str)
            assert coco_mask.decode(entry["mask"]).shape == (40, 60)


@pytest.mark.parametrize("name", ["a.jpg", "b.PNG", "turned.jpg", "deep_grey.tif"])
def test_the_numbers_are_those_of_mmdets_own_inferencer(detector, formats, results, name):
    with DefaultScope.overwrite_default_scope("mmdet"):
        inferencer = DetInferencer(detector.config, detector.checkpoint, "cpu", show_progress=False)
        (expected,) = inferencer([str(formats[0] / name)])["predictions"]
    found = json.loads(results[name].read_text())["objects"]
    for key, theirs in dict(label="labels", score="scores", bbox="bboxes", mask="masks").items():
        assert [entry[key] for entry in found] == expected[theirs]


def test_something_is_drawn_on_every_picture(formats, results):
    for name, pixels in formats[1].items():
        drawn = np.asarray(Image.open(results[name].with_suffix(".jpg")))
        assert drawn.shape == (40, 60, 3)
        assert np.abs(drawn.astype(float) - pixels).max() > 60


def test_without_objects_the_drawn_picture_is_the_picture(detector, formats, tmp_path):
    report = predict(detector.config, detector.checkpoint, [formats[0]], tmp_path, 1.0, "cpu")
    assert report.objects == 0 and len(report.written) == len(formats[1])
    for path, written in report.written.items():
        assert json.loads(written.read_text())["objects"] == []
        drawn = np.asarray(Image.open(written.with_suffix(".jpg")))
        assert np.abs(drawn.astype(float) - formats[1][path.name]).mean() < 8, path.name


def test_pictures_of_one_name_do_not_share_their_files(detector, scene, tmp_path):
    for folder, size in (("x", (60, 40)), ("y", (30, 50))):
        (tmp_path / folder).mkdir()
        scene.resize(size).save(tmp_path / folder / "1.png")
    pictures, out = [tmp_path / "x", tmp_path / "y/*"], tmp_path / "out"
    predict(detector.config, detector.checkpoint, pictures, out, 0, "cpu")
    for folder, (width, height) in (("x", (60, 40)), ("y", (30, 50))):
        found = json.loads((out / folder / "1.json").read_text())
        assert (found["width"], found["height"]) == (width, height)
        assert all(entry["mask"]["size"] == [height, width] for entry in found["objects"])
        assert Image.open(out / folder / "1.jpg").size == (width, height)


def test_what_cannot_be_used_is_named_at_the_end_and_the_rest_is_done(detector, scene, tmp_path, tool, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    scene.save(pictures / "2.jpg")
    scene.save(pictures / "6.png")
    (pictures / "1.jpg").write_bytes((pictures / "2.jpg").read_bytes()[:-100])
    (pictures / "3.png").write_bytes(b"")
    (pictures / "4.png").write_text("a list of shopping")
    Image.new("RGB", (4000, 1)).save(pictures / "5.png")  # scaled to a height of 0
    out = tmp_path / "out"
    options = ["--out", out, "--score-thr", 0, "--device", "cpu"]
    assert tool(detector.config, detector.checkpoint, pictures, *options) == 1
    assert sorted(path.name for path in out.iterdir()) == ["2.jpg", "2.json", "6.jpg", "6.json"]
    said = capsys.readouterr()
    assert f"6 objects in 2 pictures, written to {out}" in said.out
    said = said.err[said.err.index("error:") :].splitlines()
    assert said[0] == "error: 4 pictures could not be used:"
    reasons = ("1.jpg: the file is cut", "3.png: the file is empty", "4.png: it is no picture", "5.png: the config's")
    for line, reason in zip(said[1:], reasons, strict=True):
        assert line.startswith(f"  {pictures}/{reason}")


@pytest.fixture
def wider(monkeypatch):
    """Have a function done with what the network finds in pictures wider than 100 pixels."""

    def do(function):
        def test_step(self, data):
            samples = run(self, data)
            if samples[0].ori_shape[1] > 100:
                function(samples[0])
            return samples

        monkeypatch.setattr(MaskRCNN, "test_step", test_step)

    run = MaskRCNN.test_step
    return do


@pytest.fixture
def pictures(scene, tmp_path):
    """A pattern of three pictures, of which the second is wider than 100 pixels."""
    for name, width in dict(a=60, b=120, c=61).items():
        scene.resize((width, 40)).save(tmp_path / f"{name}.png")
    return tmp_path / "*.png"


def test_a_picture_that_the_network_fails_on_is_named_and_the_rest_is_done(
    detector, pictures, wider, tmp_path, tool, capsys
):
    def fail(sample):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried")

    wider(fail)
    out = tmp_path / "out"
    assert tool(detector.config, detector.checkpoint, pictures, "--out", out, "--device", "cpu") == 1
    assert sorted(path.name for path in out.glob("*.json")) == ["a.json", "c.json"]
    said = capsys.readouterr().err
    reason = "the network fails on this picture (OutOfMemoryError: CUDA out of memory. Tried)"
    assert said[said.index("error:") :] == f"error: 1 pictures could not be used:\n  {tmp_path}/b.png: {reason}\n"


def test_an_interruption_keeps_what_is_done(detector, pictures, wider, tmp_path, tool, capsys):
    def interrupt(sample):
        raise KeyboardInterrupt

    wider(interrupt)
    assert tool(detector.config, detector.checkpoint, pictures, "--out", tmp_path / "out") == 130
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg", "a.json"]
    assert "interrupted; what was finished is in" in capsys.readouterr().err


def test_boxes_that_are_not_finite_are_named_and_the_rest_is_done(detector, pictures, wider, tmp_path):
    wider(lambda sample: sample.pred_instances.bboxes.__setitem__((0, 2), torch.nan))
    report = predict(detector.config, detector.checkpoint, [pictures], tmp_path / "out", 0, "cpu")
    assert report.failed == [f"{tmp_path}/b.png: the network finds boxes that are not finite; look at the checkpoint"]
    assert list(report.written) == [tmp_path / "a.png", tmp_path / "c.png"] and report.objects == 6


def test_a_threshold_leaves_out_what_is_not_above_it(built, formats):
    scores = [entry["score"] for entry in built.detect(formats[0] / "a.jpg", 0)[0]]
    assert [entry["score"] for entry in built.detect(formats[0] / "a.jpg", scores[1])[0]] == scores[:1]


def sample_of(**fields):
    return DetDataSample(pred_instances=InstanceData(**fields))


def test_a_detector_without_masks_gives_boxes(built):
    boxes = torch.tensor([[1.0, 2.0, 3.5, 4.0]])
    sample = sample_of(labels=torch.tensor([2]), scores=torch.tensor([0.5]), bboxes=boxes)
    assert built._describe(sample, 0.3) == [dict(label=2, name="hoop", score=0.5, bbox=[1.0, 2.0, 3.5, 4.0])]


def test_a_detector_of_masks_alone_gives_the_boxes_around_them(built):
    masks = torch.zeros(1, 5, 6, dtype=torch.bool)
    masks[0, 1:3, 2:5] = True
    sample = sample_of(labels=torch.tensor([2]), scores=torch.tensor([0.5]), bboxes=torch.zeros(1, 4), masks=masks)
    (found,) = built._describe(sample, 0.3)
    assert found["bbox"] == [2, 1, 5, 3]
    assert coco_mask.decode(found["mask"]).sum() == 6


def names_by(detector, checkpoint, folder):
    """The names that a detector with these weights gives to labels 0 to 5."""
    torch.save(checkpoint, folder / "weights.pth")
    built = Detector(detector.config, str(folder / "weights.pth"), "cpu")
    sample = sample_of(labels=torch.arange(6), scores=torch.ones(6), bboxes=torch.zeros(6, 4))
    return tuple(entry["name"] for entry in built._describe(sample, 0))


@pytest.mark.parametrize("meta", [None, dict(dataset_meta={}), dict(dataset_meta=dict(classes=None))], ids=str)
def test_where_the_checkpoint_has_no_names_the_configs_are_taken(detector, tmp_path, meta):
    checkpoint = detector.state_dict if meta is None else dict(state_dict=detector.state_dict, meta=meta)
    shapes = ("circle", "cross", "ring", "square", "star", "triangle")
    assert names_by(detector, checkpoint, tmp_path) == shapes


def test_names_as_mmdet_recorded_them_before_version_3_count(detector, tmp_path):
    checkpoint = dict(state_dict=detector.state_dict, meta=dict(CLASSES=NAMES))
    assert names_by(detector, checkpoint, tmp_path) == NAMES


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (NAMES[:5], r"are 5, but the model's roi_head.bbox_head has 6 classes; expected a name for each"),
        ((*NAMES, "moon"), r"are 7, but the model's roi_head.bbox_head has 6 classes"),
        ("sphere", r"are 'sphere'; expected a list of texts"),
        ((*NAMES[:5], 6), r"'spark', 6\); expected a list of texts"),
    ],
)
def test_names_that_do_not_fit_the_classes_are_refused_before_the_first_picture(
    detector, formats, tmp_path, names, said
):
    checkpoint = dict(state_dict=detector.state_dict, meta=dict(dataset_meta=dict(classes=names)))
    torch.save(checkpoint, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=rf"weights.pth: the names of the classes .* {said}"):
        predict(detector.config, str(tmp_path / "weights.pth"), [formats[0]], tmp_path / "out", 0, "cpu")
    assert not (tmp_path / "out").exists()


def test_a_config_may_name_types_by_their_classes(detector, formats, tmp_path):
    text = Config.fromfile(detector.config).pretty_text
    assert "type='LoadImageFromFile'" in text
    text = text.replace("type='LoadImageFromFile'", "type=LoadImageFromFile").replace("type='Resize'", "type=Resize")
    (tmp_path / "config.py").write_text(
        f"from mmcv.transforms import LoadImageFromFile\nfrom mmdet.datasets.transforms import Resize\n{text}"
    )
    assert Detector(str(tmp_path / "config.py"), detector.checkpoint, "cpu").detect(formats[0] / "a.jpg", 0)[0]


def test_a_config_may_read_with_load_image_and_log_where_it_likes(detector, formats, tmp_path):
    cfg = Config.fromfile(detector.config)
    cfg.test_dataloader.dataset.pipeline[0] = dict(type="LoadImage", on_error="skip")
    cfg.visualizer.vis_backends = [dict(type="LocalVisBackend", save_dir=str(tmp_path / "logs"))]
    cfg.dump(tmp_path / "config.py")
    report = predict(str(tmp_path / "config.py"), detector.checkpoint, [formats[0] / "a.jpg"], tmp_path / "out", 0)
    assert report.objects == 3
    assert not (tmp_path / "logs").exists()


def test_the_config_in_a_checkpoint_is_not_run(detector, formats, tmp_path):
    program = "raise SystemExit('the recorded config was run')"
    checkpoint = dict(
        state_dict=detector.state_dict, meta=dict(cfg=program), message_hub=dict(runtime_info=dict(cfg=program))
    )
    torch.save(checkpoint, tmp_path / "weights.pth")
    report = predict(detector.config, str(tmp_path / "weights.pth"), [formats[0] / "a.jpg"], tmp_path / "out", 0)
    assert report.objects == 3


def test_a_checkpoint_is_data_for_mmdets_inferencer_too(detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("evil.pth").write_bytes(
        pickles.zip_file(pickles.checkpoint(pickles.call(pickles.name("os", "mkdir"), pickles.text("ran"))))
    )
    with pytest.raises(CheckpointError, match="nothing in it ran"), DefaultScope.overwrite_default_scope("mmdet"):
        DetInferencer(detector.config, "evil.pth", "cpu")
    with pytest.raises(ValueError, match="nothing in it ran"):
        predict(detector.config, "evil.pth", [__file__], tmp_path / "out")
    assert not Path("ran").exists()


def without(detector, folder, **changes):
    cfg = Config.fromfile(detector.config)
    for name, value in changes.items():
        cfg[name] = value
    cfg.dump(folder / "changed.py")
    return str(folder / "changed.py")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(config=str(ROOT / "configs/shapes/ce-resnet18_shapes.py")), "it is of mmpretrain; expected a detector"),
        (dict(config="absent.py"), "absent.py: there is no such file"),
        (dict(checkpoint="absent.pth"), "absent.pth: there is no such checkpoint"),
        (dict(pictures=["absent.png"]), "absent.png: there is no such picture"),
        (dict(score_threshold=30), "the score threshold must be from 0 to 1, as the scores are, got 30"),
        (dict(device="cuda:99"), "the device 'cuda:99' cannot be used"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(detector, formats, tmp_path, changes, said):
    good = dict(config=detector.config, checkpoint=detector.checkpoint, pictures=[formats[0]], out=tmp_path / "out")
    with pytest.raises(ValueError, match=said):
        predict(**good | changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dataset", [None, 5, dict(pipeline=None), dict(pipeline=["LoadImage", 3])], ids=str)
def test_a_config_that_does_not_say_how_to_prepare_a_picture_is_refused(detector, formats, tmp_path, dataset):
    config = without(detector, tmp_path, test_dataloader=dict(dataset=dataset))
    with pytest.raises(ValueError, match="does not say how to prepare a picture; expected a test_dataloader"):
        predict(config, detector.checkpoint, [formats[0]], tmp_path / "out")


def test_a_config_whose_pipeline_cannot_be_built_is_refused(detector, formats, tmp_path):
    pipeline = [dict(type="LoadImageFromFile"), dict(type="Nowhere")]
    dataset = dict(Config.fromfile(detector.config).test_dataloader.dataset, pipeline=pipeline)
    config = without(detector, tmp_path, test_dataloader=dict(dataset=dataset))
    with pytest.raises(ValueError, match=r"changed\.py: the test data, which prepare .* cannot be built: .*Nowhere"):
        predict(config, detector.checkpoint, [formats[0]], tmp_path / "out")


def test_weights_of_another_network_are_refused(detector, formats, tmp_path):
    torch.save(dict(state_dict={"weight": torch.zeros(3)}), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not fit the model of"):
        predict(detector.config, str(tmp_path / "other.pth"), [formats[0]], tmp_path / "out")


def test_the_tool_ends_with_one_line_and_status_2_on_bad_input(detector, tmp_path, tool, capsys):
    assert tool(detector.config, detector.checkpoint, tmp_path / "*.jpg", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/*.jpg: there is no such picture") and error.count("\n") == 1
