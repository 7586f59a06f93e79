"""``norm_eval`` for every norm with moving averages: mmpretrain's backbones look for some kinds of batch norm alone.

CE follows its base norm, so a batch norm that they put into eval mode takes CE with it. Over GN, LN or IN nothing
would: these have no moving averages themselves, but CE has. SN has some of its own, and is no batch norm.
"""
from typing import Self

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ce_mm.layers import CENorm, SwitchableNorm


class NormEval(nn.Module):
    """What a CE backbone inherits from in front of mmpretrain's class."""

    def train(self, mode: bool = True) -> Self:
        """As the backbone's; with ``norm_eval`` all batch norms (also SyncBN), SN and CE's norms stay in eval mode."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, (_BatchNorm, SwitchableNorm)):
                    module.eval()
                elif isinstance(module, CENorm):
                    module.norm.eval()  # as other backbones do: CE itself still knows that it is in a training
        return self
