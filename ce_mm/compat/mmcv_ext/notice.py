"""What a user reads of the stand-in: whose operators these are, and how to get mmcv's own."""
import functools
import logging

from mmengine.logging import print_log

HOW_TO_COMPILE = (
    "To get mmcv's own, install a full (not lite) mmcv whose compiled operators fit this PyTorch and CUDA, "
    "as a ready wheel or built from source with MMCV_WITH_OPS=1."
)


@functools.cache
def say_once() -> None:
    """Note in the log, when the first operator runs, whose operators these are."""
    print_log(
        "This mmcv has no compiled operators (mmcv._ext): torchvision's stand in for nms and roi_align, plain PyTorch "
        f"for soft_nms; any other operator raises an error when it is called. {HOW_TO_COMPILE}",
        logger="current",
        level=logging.INFO,
    )
