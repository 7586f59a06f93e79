"""Reading a picture of a data set: a bad one is named, and then refused or skipped, as the config says.

By itself mmcv's ``LoadImageFromFile`` stops at an empty file without naming it; trains on what OpenCV before 4.11 makes
of a JPEG that is cut short, the rest of it grey; does not notice a picture of another size than its annotations'; and
its ``ignore_empty`` passes over missing files without a word, but not over files that are no pictures.
"""
import logging
import os
import zlib
from typing import Literal

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.logging import print_log

from ce_mm.transforms.decoding import PictureError, check_size, read_picture

SLOTS = 65536
"""So many skipped files are remembered; what is beyond may be named again."""


class LoadImage(LoadImageFromFile):
    """``LoadImageFromFile``, but a bad picture is named. It takes that one's place in a pipeline.

    Bad is a file that is missing, not for reading, empty, no picture, or cut short, and a picture of another size than
    ``height`` and ``width``, where the data set gives them. What passes: a picture damaged in its middle so that it
    still decodes; JPEG has no checksum.

    Args:
        on_error: ``'refuse'`` raises. ``'skip'`` is for training: it logs the file, and the data set takes another
            picture at random (``max_refetch`` attempts). Each process of a distributed training names a file once; all
            its workers, in all epochs, share the memory of what has been named. In validation and testing, figures
            without some pictures would not be those of the data set: a data set with ``test_mode=True``, as in mmdet's
            configs, stops at a skipped picture; mmpretrain's configs do not set it, and it would take another picture
            instead, so leave it at ``'refuse'`` there.
        to_float32, color_type, imdecode_backend, backend_args: as for ``LoadImageFromFile``.

    Raises:
        ValueError: ``on_error`` is neither of the two.
    """

    def __init__(
        self,
        on_error: Literal["refuse", "skip"] = "refuse",
        to_float32: bool = False,
        color_type: str = "color",
        imdecode_backend: str = "cv2",
        backend_args: dict | None = None,
    ) -> None:
        if on_error not in ("refuse", "skip"):
            raise ValueError(f"LoadImage's on_error must be 'refuse' or 'skip', got {on_error!r}")
        super().__init__(to_float32, color_type, imdecode_backend, backend_args=backend_args)
        self.on_error = on_error
        #: A number for each file that has been named, 0 for a free slot; in memory that worker processes share.
        self._named = torch.zeros(SLOTS, dtype=torch.int64).share_memory_() if on_error == "skip" else None

    def transform(self, results: dict) -> dict | None:
        """Read ``results['img_path']``.

        Args:
            results: with ``img_path``, and ``height`` and ``width`` in pixels if they are known.

        Returns:
            ``results`` with ``img``, (H, W, 3) for colour, uint8 or float32; ``img_shape`` and ``ori_shape``, (H, W).
            None for a bad picture that is skipped.

        Raises:
            PictureError: a bad picture is refused.
        """
        path = results["img_path"]
        try:
            image = read_picture(path, self.color_type, self.imdecode_backend, self.backend_args)
            height, width = image.shape[:2]
            check_size(path, image, results.get("height", height), results.get("width", width))
        except PictureError as error:
            if self.on_error == "refuse":
                raise
            if self._is_new(path):
                # At this level, because processes other than the first one log nothing lower.
                print_log(f"{error}; it is skipped", logger="current", level=logging.ERROR)
            return None
        if self.to_float32:
            image = image.astype(np.float32)
        results["img"] = image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results

    def _is_new(self, path: str) -> bool:
        number = zlib.crc32(os.fsencode(path)) + 1
        for place in range(number, number + SLOTS):  # from its own slot to the first that is free
            taken_by = self._named[place % SLOTS].item()
            if taken_by == number:
                return False
            if taken_by == 0:
                self._named[place % SLOTS] = number
                break
        return True

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, on_error={self.on_error!r})"
