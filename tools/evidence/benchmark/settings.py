"""What a run is made with: device, type and layout of the maps, batch, rounds."""
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


@dataclass(frozen=True)
class Settings:
    """The choices of a run, named as the options that make them.

    Raises:
        ValueError: a value is out of range, or the device is not there.
    """

    device: str
    batch: int
    dtype: str
    layout: str
    warmup: int
    rounds: int
    quick: bool = False

    def __post_init__(self) -> None:
        for name, least in dict(batch=1, warmup=0, rounds=2).items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: PyTorch finds no GPU here")

    def random_map(self, *shape: int, requires_grad: bool = False) -> Tensor:
        """Random numbers of the run's device, type and layout."""
        values = torch.randn(*shape, device=self.device).to(DTYPES[self.dtype], memory_format=LAYOUTS[self.layout])
        return values.requires_grad_(requires_grad)

    def placed(self, module: nn.Module) -> nn.Module:
        """The module on the run's device, its convolutions in the run's layout."""
        return module.to(device=self.device, memory_format=LAYOUTS[self.layout])

    def autocast(self) -> AbstractContextManager:
        """What forward passes run under: autocast to the type, or nothing for float32."""
        return nullcontext() if self.dtype == "float32" else torch.autocast(self.device, DTYPES[self.dtype])
