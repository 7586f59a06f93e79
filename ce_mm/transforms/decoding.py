"""The pixels of a picture file, as a training sees them: for all that trains, predicts or draws on a user's pictures.

Decoders differ. OpenCV's, which OpenMMLab's configs read with, turns a picture as its EXIF orientation says and brings
16 bits down to 8; Pillow's does neither.
"""
import mmcv
import numpy as np
from mmengine import fileio


class PictureError(ValueError):
    """A picture that cannot be used; the text names the file and what is wrong with it."""


def read_picture(
    path: str, color_type: str = "color", backend: str = "cv2", backend_args: dict | None = None
) -> np.ndarray:
    """Read and decode a picture file.

    Args:
        path: the file; what mmengine's file backends read.
        color_type, backend: the flag and the backend of ``mmcv.imfrombytes``; by default those of OpenMMLab's configs.
        backend_args: of the file backend.

    Returns:
        (H, W, 3), BGR, uint8, with the defaults.

    Raises:
        PictureError: the file is missing, not for reading, empty, no picture, or cut short.
    """
    try:
        content = bytes(fileio.get(path, backend_args=backend_args))  # some backends give a memoryview
    except OSError as error:
        raise PictureError(f"{path}: it cannot be read ({error.strerror or error})") from error
    if not content:
        raise PictureError(f"{path}: the file is empty")
    if _is_cut_jpeg(content):
        raise PictureError(f"{path}: the file is cut short (a JPEG without its end marker)")
    try:
        image = mmcv.imfrombytes(content, flag=color_type, backend=backend)
    except Exception as error:  # damaged bytes raise anything, whichever the decoder
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PictureError(f"{path}: it cannot be decoded ({reason})") from error
    if image is None:  # OpenCV's way
        raise PictureError(f"{path}: it is no picture, or a damaged one: {backend} cannot decode it")
    return image


def check_size(path: str, image: np.ndarray, height: int, width: int) -> None:
    """Raise PictureError where a picture (H, W, ...) has another size than its annotations are for."""
    if image.shape[:2] == (height, width):
        return
    turned = image.shape[:2] == (width, height)
    raise PictureError(
        f"{path}: the picture has {image.shape[1]}×{image.shape[0]} pixels, its annotations are for {width}×{height}"
        + (" (if its EXIF orientation turns it, color_type='color_ignore_orientation' does not)" if turned else "")
    )


def _is_cut_jpeg(content: bytes) -> bool:
    """Whether these are the first bytes of a JPEG, without its end.

    The end marker is looked for behind the start of the pixels: a preview among the headers has one of its own. (At the
    very end it needs no such care: a file cut there has no pixels to decode.)
    """
    if not content.startswith(b"\xff\xd8\xff") or content.endswith(b"\xff\xd9"):
        return False
    position = 2
    while content[position : position + 1] == b"\xff" and content[position + 1 : position + 2] != b"\xda":
        if content[position + 1 : position + 2] == b"\xff":  # which may fill the space between two segments
            position += 1
        else:
            position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return content.find(b"\xff\xd9", position) < 0
