"""Resuming a training under FSDP: mmengine passes arguments in the order of PyTorch 2.0, which has changed since."""
from typing import Any

from mmengine._strategy import fsdp
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer


def make_fsdp_resume() -> None:
    """Make ``FSDPStrategy`` load an optimizer's state on PyTorch 2.1 and later; a second call does nothing."""
    fsdp.FSDP = _FSDP


class _FSDP(FullyShardedDataParallel):
    """FSDP as ``FSDPStrategy`` calls it."""

    @staticmethod
    def optim_state_dict_to_load(model: nn.Module, optim: Optimizer, optim_state_dict: dict, **settings: Any) -> dict:
        """What the optimizer of this process takes, in whichever order the three are given."""
        if isinstance(model, dict):
            model, optim, optim_state_dict = optim, optim_state_dict, model
        return FullyShardedDataParallel.optim_state_dict_to_load(model, optim, optim_state_dict, **settings)
