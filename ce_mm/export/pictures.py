"""From pictures to what a network takes, in standard operators: what a ``data_preprocessor`` does to a whole batch.

An exported file takes RGB, whatever its network was trained on. OpenMMLab reads picture files as BGR; only data sets
that bring their pictures themselves, as CIFAR's do, have RGB. A data_preprocessor may swap the two.
"""
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor, ImgDataPreprocessor
from mmpretrain.models import ClsDataPreprocessor
from torch import Tensor, nn

from ce_mm.launching.config import dicts, type_name

#: Step of a pipeline -> the setting by which it changes RGB to BGR, or back.
_SWAPS = {"NumpyToPIL": "to_rgb", "PILToNumpy": "to_bgr", "ToNumpy": "to_bgr"}


class Preparation(nn.Module):
    """Channel order, normalisation and padding.

    Args:
        preprocessor: of the model; it is only read.
        reads_rgb: whether the pictures that ``preprocessor`` gets are RGB (else BGR).

    Raises:
        ValueError: the preprocessor is of a kind that is not known here.

    Buffers:
        mean, std: (C, 1, 1), in the order of the network; None without normalisation.
    """

    def __init__(self, preprocessor: nn.Module, reads_rgb: bool) -> None:
        super().__init__()
        if isinstance(preprocessor, ClsDataPreprocessor):
            swaps = preprocessor.to_rgb
        elif isinstance(preprocessor, ImgDataPreprocessor):
            swaps = preprocessor._channel_conversion
        elif type(preprocessor) is BaseDataPreprocessor:  # hands on what it gets
            swaps = False
        else:
            raise ValueError(
                f"the data_preprocessor {type(preprocessor).__name__} cannot be exported; expected "
                "ClsDataPreprocessor, DetDataPreprocessor or another ImgDataPreprocessor"
            )
        #: Whether the network takes RGB.
        self.to_rgb = reads_rgb != swaps
        for name in ("mean", "std"):
            value = getattr(preprocessor, name, None)
            self.register_buffer(name, None if value is None else value.detach().clone())
        self.divisor = getattr(preprocessor, "pad_size_divisor", 1)
        self.pad_value = getattr(preprocessor, "pad_value", 0)

    def forward(self, pictures: Tensor) -> Tensor:
        """What the network takes, of RGB pictures (N, 3, H, W), or of others with any number of channels.

        Returns:
            (N, C, H, W), padded at the right and the bottom to a multiple of the divisor.
        """
        x = pictures if self.to_rgb or pictures.shape[1] != 3 else pictures.flip(1)
        if self.mean is not None:
            x = (x - self.mean) / self.std
        if self.divisor > 1:
            height, width = x.shape[2:]
            x = F.pad(x, (0, -width % self.divisor, 0, -height % self.divisor), value=self.pad_value)
        return x


def reads_rgb(config: Config) -> bool:
    """Whether the pictures that a config's model gets in a test are RGB (else BGR).

    They are BGR where a step of the pipeline loads a file, and where the config has no data set at all; each step that
    changes to the other order and to or from Pillow changes it.
    """
    steps = list(dicts(config.get("test_dataloader")))
    from_files = not steps or any(type_name(step).startswith("LoadImage") for step in steps)
    swaps = sum(bool(step.get(_SWAPS.get(type_name(step)))) for step in steps)
    return from_files == bool(swaps % 2)
