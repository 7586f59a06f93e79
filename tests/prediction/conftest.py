"""A small Mask R-CNN with random weights, which finds three things in every picture, and pictures to find them in."""
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from ce_mm.launching.config import read_config

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
_base_ = [{base!r}]
model = dict(test_cfg=dict(rcnn=dict(max_per_img=3, score_thr=0.0)))
test_pipeline = [
    dict(type="LoadImageFromFile", backend_args=None),
    dict(type="Resize", scale=(96, 80), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""
NAMES = ("disc", "plus", "hoop", "box", "spark", "wedge")
"""What the checkpoint calls the six shapes, other than the config does."""


@pytest.fixture(scope="session")
def detector(tmp_path_factory):
    """``.config`` and ``.checkpoint``, two strings, and ``.state_dict``."""
    folder = tmp_path_factory.mktemp("detector")
    config = folder / "detector.py"
    config.write_text(CONFIG.format(base=str(ROOT / "configs/shapes/mask-rcnn_ce-r18_fpn_shapes.py")))
    cfg = read_config(str(config))
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        weights = MODELS.build(cfg.model).state_dict()
    path = folder / "detector.pth"
    torch.save(dict(state_dict=weights, meta=dict(dataset_meta=dict(CLASSES=NAMES))), path)
    return SimpleNamespace(config=str(config), checkpoint=str(path), state_dict=weights)


@pytest.fixture(scope="session")
def scene() -> Image.Image:
    """A picture of 60×40: red above, blue below, a yellow square on the left."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20], pixels[20:] = (200, 30, 20), (20, 40, 220)
    pixels[10:25, 5:20] = (240, 230, 10)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def write_formats(scene):
    """Writes the scene into a folder in every common format; name -> what a reader should see, (40, 60, 3) RGB."""

    def write(folder: Path) -> dict[str, np.ndarray]:
        seen = {}

        def save(name, picture=scene, look=None, **options):
            picture.save(folder / name, **options)
            seen[name] = np.asarray((look or picture).convert("RGB"))

        for name in ("a.jpg", "b.PNG", "c.bmp", "d.webp", "e.tiff", "f.ppm"):
            save(name, quality=95)
        grey, palette = scene.convert("L"), scene.convert("P", palette=Image.Palette.ADAPTIVE)
        save("grey.jpg", grey, quality=95)
        save("palette.png", palette)
        save("first_of_two.gif", palette, save_all=True, append_images=[palette.rotate(180)])
        save("alpha.png", scene.convert("RGBA"))
        save("cmyk.jpg", scene.convert("CMYK"), quality=95)
        turned = Image.Exif()
        turned[0x0112] = 6  # to be turned by a quarter before it is looked at
        save("turned.jpg", scene.transpose(Image.Transpose.ROTATE_90), look=scene, exif=turned, quality=95)
        deep = np.asarray(scene).astype(np.uint16) * 257
        cv2.imwrite(str(folder / "deep.png"), deep[..., ::-1])
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(folder / "deep_grey.tif")
        return seen | {"deep.png": np.asarray(scene), "deep_grey.tif": np.asarray(grey.convert("RGB"))}

    return write
