"""Pictures of every kind have the pixels that mmcv's own loader, and so a training, sees."""
import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from ce_mm.transforms import PictureError, check_size, read_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    PICTURE.save(path, "JPEG", exif=exif)


def moving(path):
    PICTURE.save(path, "GIF", save_all=True, append_images=[PICTURE.rotate(180)])


def of_16_bits(path):
    cv2.imwrite(f"{path}.png", PIXELS.astype(np.uint16) * 257)
    path.with_suffix(".png").rename(path)


KINDS = {
    "EXIF orientation": turned,
    "16-bit grey": lambda path: Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257).save(path, "TIFF"),
    "16-bit colour": of_16_bits,
    "palette": lambda path: PICTURE.convert("P").save(path, "PNG"),
    "alpha": lambda path: PICTURE.convert("RGBA").save(path, "PNG"),
    "CMYK": lambda path: PICTURE.convert("CMYK").save(path, "JPEG"),
    "1-bit": lambda path: PICTURE.convert("1").save(path, "PNG"),
    "several frames": moving,
}


@pytest.mark.parametrize("write", KINDS.values(), ids=KINDS.keys())
def test_pixels_are_those_of_mmcv_s_loader(tmp_path, write):
    write(tmp_path / "picture")
    expected = LoadImageFromFile()(dict(img_path=str(tmp_path / "picture")))["img"]
    found = read_picture(str(tmp_path / "picture"))
    assert found.dtype == np.uint8 and found.std() > 10
    assert np.array_equal(found, expected)


def test_a_picture_s_size_is_that_of_the_turned_picture(tmp_path):
    turned(tmp_path / "picture")
    image = read_picture(str(tmp_path / "picture"))
    check_size("picture", image, 64, 48)
    with pytest.raises(PictureError, match=r"has 48×64 pixels, its annotations are for 64×48 .*EXIF"):
        check_size("picture", image, 48, 64)
