"""Every kind of bad picture is named, and refused or skipped, in trainings and tests of both libraries."""
import io
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import TRANSFORMS
from mmengine.runner import Runner
from PIL import Image

from ce_mm.datasets.shapes import make_shapes
from ce_mm.transforms import LoadImage, PictureError

ROOT = Path(__file__).resolve().parents[2]


def encoded(kind, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


@pytest.fixture
def file(tmp_path):
    """Writes a file of these bytes; its path."""

    def write(content, name="picture"):
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write


def preview():
    """EXIF data with a small JPEG in it, end marker and all."""
    exif = Image.Exif()
    exif[0x9286] = b"ASCII\0\0\0" + encoded("JPEG", quality=1)
    return exif


GOOD = {
    "jpeg": encoded("JPEG"),
    "progressive": encoded("JPEG", progressive=True),
    "preview": encoded("JPEG", exif=preview()),
    "appended": encoded("JPEG") + b"\xff\xda" * 9,  # as telephones do with a film
    "filled": encoded("JPEG")[:2] + b"\xff\xff\xff" + encoded("JPEG")[2:] + b"\0",
    "png": encoded("PNG"),
    "webp": encoded("WEBP"),
}


@pytest.mark.parametrize("content", GOOD.values(), ids=GOOD.keys())
def test_a_good_picture_is_what_mmcv_reads(file, content):
    path = file(content)
    for options in ({}, dict(to_float32=True), dict(color_type="grayscale"), dict(imdecode_backend="pillow")):
        expected = LoadImageFromFile(**options)(dict(img_path=path))
        found = LoadImage(**options)(dict(img_path=path, height=48, width=64))
        assert (found["img"] == expected["img"]).all() and found["img"].dtype == expected["img"].dtype
        assert found["img_shape"] == found["ori_shape"] == expected["ori_shape"] == (48, 64)


BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"a list of shopping", "it is no picture, or a damaged one: cv2 cannot decode it"),
    "half a JPEG": (encoded("JPEG")[:1500], "the file is cut short (a JPEG without its end marker)"),
    "nearly a JPEG": (encoded("JPEG")[:-1], "the file is cut short"),
    "progressive": (encoded("JPEG", progressive=True)[:-20], "the file is cut short"),
    "preview": (encoded("JPEG", exif=preview())[:-20], "the file is cut short"),
    "half a PNG": (encoded("PNG")[:2000], "it is no picture, or a damaged one"),
    "half a WebP": (encoded("WEBP")[:1000], "it is no picture, or a damaged one"),
}


@pytest.mark.parametrize(("content", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_picture_is_named_with_what_is_wrong(file, content, reason):
    path = file(content)
    with pytest.raises(PictureError) as refusal:
        LoadImage()(dict(img_path=path))
    assert str(refusal.value).startswith(f"{path}: {reason}")
    assert "\n" not in str(refusal.value)


def test_other_decoders_errors_name_the_picture_too(file):
    path = file(encoded("PNG")[:2000])
    with pytest.raises(PictureError, match="picture: it cannot be decoded"):
        LoadImage(imdecode_backend="pillow")(dict(img_path=path))


def test_a_jpeg_that_is_cut_short_is_refused_whatever_opencv_makes_of_it(file, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((48, 64, 3), np.uint8))  # as before OpenCV 4.11
    with pytest.raises(PictureError, match="cut short"):
        LoadImage()(dict(img_path=file(encoded("JPEG")[:1500])))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(PictureError, match=r"absent\.jpg: it cannot be read \(No such file"):
        LoadImage()(dict(img_path=str(tmp_path / "absent.jpg")))
    with pytest.raises(PictureError, match=r"it cannot be read \(Is a directory\)"):
        LoadImage()(dict(img_path=str(tmp_path)))


def test_a_backend_may_give_a_view_of_memory(file, monkeypatch):
    content = encoded("JPEG")
    expected = LoadImage()(dict(img_path=file(content)))["img"]
    monkeypatch.setattr("mmengine.fileio.get", lambda *_, **__: memoryview(content))
    assert (LoadImage()(dict(img_path="elsewhere"))["img"] == expected).all()


def test_another_size_than_the_annotations_is_an_error(file):
    path = file(encoded("PNG"))
    with pytest.raises(PictureError, match=r"has 64×48 pixels, its annotations are for 64×50$"):
        LoadImage()(dict(img_path=path, height=50, width=64))
    with pytest.raises(PictureError, match=r"for 48×64 .*EXIF.*'color_ignore_orientation'"):
        LoadImage()(dict(img_path=path, height=64, width=48))


def test_a_wrong_setting_is_named():
    with pytest.raises(ValueError, match="on_error must be 'refuse' or 'skip', got 'ignore'"):
        LoadImage(on_error="ignore")


def test_a_config_finds_it_by_its_name():
    assert TRANSFORMS.build(dict(type="LoadImage", on_error="skip")).on_error == "skip"
    assert "on_error='skip'" in repr(LoadImage("skip"))


def test_a_skipped_picture_is_named_once_by_all_workers_together(tmp_path):
    log = tmp_path / "log"
    logger = MMLogger.get_instance(f"skipping_{tmp_path.name}", log_file=str(log))
    paths = [str(tmp_path / f"{index}.jpg") for index in range(40)]

    class Pictures(torch.utils.data.Dataset):
        load = LoadImage("skip")

        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            MMLogger._instance_dict.move_to_end(logger.instance_name)  # the current one
            return self.load(dict(img_path=paths[index])) is None

    data = Pictures()
    for _ in range(3):
        assert all(all(batch) for batch in torch.utils.data.DataLoader(data, batch_size=4, num_workers=2))
    text = log.read_text()
    assert [text.count(path + ":") for path in paths] == [1] * 40


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes") / "shapes", num_train=8, num_val=3, num_crops=24)


def small(config, folder, load, **settings):
    """A config of the demo that trains for two epochs on the data in ``folder``, without files but its log."""
    cfg = Config.fromfile(ROOT / "configs/shapes" / config)
    cfg.merge_from_dict(
        {
            "work_dir": str(folder / "run"), "experiment_name": f"{folder.name}_{config}", "visualizer": None,
            "train_cfg.max_epochs": 2, "param_scheduler": None, "val_cfg": None, "val_dataloader": None,
            "val_evaluator": None, "default_hooks.checkpoint": None, "test_dataloader.num_workers": 0,
            "train_dataloader.persistent_workers": False, "test_dataloader.persistent_workers": False,
        } | settings
    )  # fmt: skip
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.dataset.pipeline[0] = load
    return cfg


def detection(folder, shapes, load):
    """A config for Mask R-CNN, and its training pictures."""
    data = shutil.copytree(shapes, folder / "data")
    settings = {
        "model.backbone.init_cfg": None, "train_dataloader.dataset.pipeline.2.scale": (64, 48),
        "train_dataloader.batch_size": 4, "train_dataloader.dataset.data_root": f"{data}/",
        "test_dataloader.dataset.data_root": f"{data}/", "test_evaluator.ann_file": f"{data}/annotations/val.json",
    }  # fmt: skip
    return small("mask-rcnn_ce-r18_fpn_shapes.py", folder, load, **settings), sorted(data.glob("train/*"))


def classification(folder, shapes, load):
    """A config for a classifier, and its training pictures."""
    data = shutil.copytree(shapes / "crops", folder / "data")
    settings = {
        "train_dataloader.batch_size": 8, "train_dataloader.dataset.data_root": f"{data}/train",
        "test_dataloader.dataset.data_root": f"{data}/val", "test_dataloader.dataset.test_mode": True,
    }  # fmt: skip
    return small("ce-resnet18_shapes.py", folder, load, **settings), sorted(data.glob("train/*/*"))


SKIP, REFUSE = dict(type="LoadImage", on_error="skip"), dict(type="LoadImage")
both = pytest.mark.parametrize("task", [detection, classification])


def log_of(cfg):
    (path,) = Path(cfg.work_dir).glob("*/*.log")
    return path.read_text()


@both
def test_training_takes_other_pictures_for_the_skipped_ones_and_names_each_once(task, shapes, tmp_path):
    cfg, pictures = task(tmp_path, shapes, SKIP)
    bad = pictures[:3]
    bad[0].write_bytes(b"")
    bad[1].write_bytes(bad[1].read_bytes()[:-2000])
    if task is detection:
        bad[2].unlink()
    else:  # whose data set is what lies in the folder
        bad[2].write_text("a list of shopping")
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.epoch == 2 and runner.iter == 2 * len(runner.train_dataloader)
    log = log_of(cfg)
    assert [log.count(f"{path}: ") for path in pictures] == [1] * 3 + [0] * (len(pictures) - 3)


@both
def test_training_stops_at_a_refused_picture(task, shapes, tmp_path):
    cfg, pictures = task(tmp_path, shapes, REFUSE)
    pictures[1].write_bytes(pictures[1].read_bytes()[:-2000])
    with pytest.raises(PictureError, match=rf"{pictures[1]}: it is no picture, or a damaged one"):
        Runner.from_cfg(cfg).train()


def test_a_picture_of_another_size_stops_the_training_of_a_detector(shapes, tmp_path):
    cfg, pictures = detection(tmp_path, shapes, REFUSE)
    Image.new("RGB", (100, 90)).save(pictures[2])
    with pytest.raises(PictureError, match=rf"{pictures[2]}: the picture has 100×90 pixels, .* for 192×160"):
        Runner.from_cfg(cfg).train()


@both
def test_a_test_stops_at_a_bad_picture(task, shapes, tmp_path):
    cfg, _ = task(tmp_path, shapes, REFUSE)
    bad = next((tmp_path / "data/val").rglob("*.png"))
    bad.write_bytes(b"")
    with pytest.raises(PictureError, match=f"{bad}: the file is empty"):
        Runner.from_cfg(cfg).test()


@both
def test_no_picture_vanishes_from_the_figures_of_a_data_set_in_test_mode(task, shapes, tmp_path):
    cfg, _ = task(tmp_path, shapes, SKIP)
    bad = next((tmp_path / "data/val").rglob("*.png"))
    bad.write_bytes(b"")
    with pytest.raises(Exception, match="should not get `None`"):
        Runner.from_cfg(cfg).test()
    assert f"{bad}: the file is empty; it is skipped" in log_of(cfg)
