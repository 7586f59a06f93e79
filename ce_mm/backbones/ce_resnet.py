"""CE-ResNet: a ResNet with CE after the stem's norm and after the last norm of every block, before the residual add.

The networks are mmpretrain's; a CE block is its block with another last norm, which takes the residual add and the
rectifier that follow it into its own last pass over the map.
"""
from collections.abc import Sequence
from typing import Any

from mmpretrain.models.backbones import ResNet
from mmpretrain.models.backbones.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ce_mm.backbones.arguments import ce_arguments, check_stages, norm_arguments
from ce_mm.backbones.ce_conv_module import RECTIFIERS, equalize_conv_module, unseen
from ce_mm.backbones.norm_eval import NormEval
from ce_mm.backbones.rectifier import replace_rectifiers
from ce_mm.layers import CENorm


class _CEBlock(nn.Module):
    """What a block with CE has in front of mmpretrain's class: its last norm is CENorm, unless ``ce_cfg`` is None."""

    #: How many convolutions it has, each with its norm.
    convolutions: int

    def __init__(self, *args: Any, ce_cfg: dict | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if ce_cfg is not None:
            self.add_module(getattr(self, f"norm{self.convolutions}_name"), CENorm(self.out_channels, **ce_cfg))

    def forward(self, x: Tensor) -> Tensor:
        """As mmpretrain's."""
        numbers = range(1, self.convolutions + 1)
        *first, (last, ce) = [(getattr(self, f"conv{number}"), getattr(self, f"norm{number}")) for number in numbers]
        if not isinstance(ce, CENorm):
            return super().forward(x)
        folds_add = isinstance(self.drop_path, nn.Identity)
        rectifier = RECTIFIERS.get(type(self.relu))

        def whole(x: Tensor) -> Tensor:
            identity = x if self.downsample is None else self.downsample(x)
            for convolution, norm in first:
                x = self.relu(norm(convolution(x)))
            x = last(x)
            if folds_add:
                x = ce(x, residual=identity, rectifier=rectifier, overwrite=unseen(last, ce))
            else:
                x = self.drop_path(ce(x, overwrite=unseen(last, ce))) + identity
            return x if folds_add and rectifier is not None else self.relu(x)

        return checkpoint(whole, x, use_reentrant=False) if self.with_cp and x.requires_grad else whole(x)


class CEBasicBlock(_CEBlock, BasicBlock):
    """BasicBlock whose second norm is CENorm."""

    convolutions = 2


class CEBottleneck(_CEBlock, Bottleneck):
    """Bottleneck whose third norm is CENorm."""

    convolutions = 3


class CEResNet(NormEval, ResNet):
    """ResNet with Channel Equilibrium (paper section 4.1).

    Args:
        depth: 18, 34, 50, 101 or 152.
        ce_cfg: CENorm's arguments; its base norm is ``norm_cfg`` unless given here.
        ce_stem_cfg: what differs at the stem, for example ``dict(group_size=64)`` for the authors' weights, or
            ``dict(max_pool=True)``, the paper's own setting, which costs a pass more here.
        ce_stages: which of the four stages have CE.
        zero_init_residual: False here: a zero γ leaves CE nothing to decorrelate at the start of training.
        norm_cfg: of the whole network; BN by default.
        act_cfg: the rectifier at every place, also in the stem; ReLU by default.
        kwargs: mmpretrain's ResNet's; ``frozen_stages``, ``norm_eval``, ``with_cp``, ``init_cfg`` and checkpoints of a
            plain ResNet work as there.
    """

    arch_settings = {
        depth: ({BasicBlock: CEBasicBlock, Bottleneck: CEBottleneck}[block], blocks)
        for depth, (block, blocks) in ResNet.arch_settings.items()
    }

    def __init__(
        self,
        depth: int,
        ce_cfg: dict | None = None,
        ce_stem_cfg: dict | None = None,
        ce_stages: Sequence[bool] = (True, True, True, False),
        zero_init_residual: bool = False,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        check_stages(ce_stages, 4)
        norm_cfg = norm_arguments(norm_cfg)
        self._ce_cfg = ce_arguments(ce_cfg, dict(norm=norm_cfg))
        self._ce_stem_cfg = ce_arguments(ce_stem_cfg, self._ce_cfg, "ce_stem_cfg")
        self._ce_stages = iter(ce_stages)
        super().__init__(depth, norm_cfg=norm_cfg, zero_init_residual=zero_init_residual, **kwargs)
        if act_cfg is not None:
            replace_rectifiers(self, act_cfg)
            self._freeze_stages()  # again: ResNet did it before these were there, and PReLU has weights

    def make_res_layer(self, **kwargs: Any) -> nn.Module:
        """A stage, called by ResNet for one after the other."""
        return super().make_res_layer(ce_cfg=self._ce_cfg if next(self._ce_stages) else None, **kwargs)

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        if self.deep_stem:
            equalize_conv_module(self.stem[-1], self._ce_stem_cfg)
        else:
            self.add_module(self.norm1_name, CENorm(stem_channels, **self._ce_stem_cfg))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """As ResNet's, with the stem's ReLU inside its CE."""
        if self.deep_stem:
            x = self.stem(x)
        else:
            rectifier = RECTIFIERS.get(type(self.relu))
            x = self.norm1(self.conv1(x), rectifier=rectifier, overwrite=unseen(self.conv1, self.norm1))
            x = self.relu(x) if rectifier is None else x
        x = self.maxpool(x)
        outs = []
        for index, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if index in self.out_indices:
                outs.append(x)
        return tuple(outs)
