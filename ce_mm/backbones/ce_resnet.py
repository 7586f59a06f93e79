"""CE-ResNet: a ResNet with CE after the stem's norm and after the last norm of every block, before the residual add.

The networks are mmpretrain's; a CE block is its block with another last norm, which takes the residual add and the
rectifier that follow it into its own last pass over the map.
"""
from collections.abc import Callable, Sequence
from typing import Any

from mmpretrain.models.backbones import ResNet
from mmpretrain.models.backbones.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ce_mm.backbones.arguments import ce_arguments, norm_arguments
from ce_mm.backbones.ce_conv_module import RECTIFIERS, equalize_conv_module, unseen
from ce_mm.backbones.norm_eval import NormEval
from ce_mm.backbones.rectifier import replace_rectifiers
from ce_mm.layers import CENorm


class CEBasicBlock(BasicBlock):
    """BasicBlock whose second norm is CENorm, unless ``ce_cfg`` (CENorm's arguments) is None."""

    def __init__(self, *args: Any, ce_cfg: dict | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if ce_cfg is not None:
            self.add_module(self.norm2_name, CENorm(self.out_channels, **ce_cfg))

    def forward(self, x: Tensor) -> Tensor:
        """As BasicBlock's."""
        if not isinstance(self.norm2, CENorm):
            return super().forward(x)
        return _forward(self, x, lambda x: self.relu(self.norm1(self.conv1(x))), self.conv2, self.norm2)


class CEBottleneck(Bottleneck):
    """Bottleneck whose third norm is CENorm, unless ``ce_cfg`` (CENorm's arguments) is None."""

    def __init__(self, *args: Any, ce_cfg: dict | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if ce_cfg is not None:
            self.add_module(self.norm3_name, CENorm(self.out_channels, **ce_cfg))

    def forward(self, x: Tensor) -> Tensor:
        """As Bottleneck's."""
        if not isinstance(self.norm3, CENorm):
            return super().forward(x)

        def first(x: Tensor) -> Tensor:
            out = self.relu(self.norm1(self.conv1(x)))
            return self.relu(self.norm2(self.conv2(out)))

        return _forward(self, x, first, self.conv3, self.norm3)


def _forward(
    block: BasicBlock | Bottleneck, x: Tensor, first: Callable[[Tensor], Tensor], last: nn.Module, ce: CENorm
) -> Tensor:
    """A block's forward, from the layers before its last convolution to its CE with the residual add and the ReLU."""
    folds_add = isinstance(block.drop_path, nn.Identity)
    rectifier = RECTIFIERS.get(type(block.relu))

    def whole(x: Tensor) -> Tensor:
        identity = x if block.downsample is None else block.downsample(x)
        out = last(first(x))
        if folds_add:
            out = ce(out, residual=identity, rectifier=rectifier, overwrite=unseen(last, ce))
        else:
            out = block.drop_path(ce(out, overwrite=unseen(last, ce))) + identity
        return out if folds_add and rectifier is not None else block.relu(out)

    return checkpoint(whole, x, use_reentrant=False) if block.with_cp and x.requires_grad else whole(x)


class CEResNet(NormEval, ResNet):
    """ResNet with Channel Equilibrium (paper section 4.1).

    Args:
        depth: 18, 34, 50, 101 or 152.
        ce_cfg: CENorm's arguments; its base norm is ``norm_cfg`` unless given here.
        ce_stem_cfg: what differs at the stem, for example ``dict(group_size=64)`` for the authors' weights.
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
        is_list = isinstance(ce_stages, (tuple, list))
        if not is_list or len(ce_stages) != 4 or not all(stage in (True, False) for stage in ce_stages):
            raise ValueError(f"ce_stages must say True or False for each of the four stages, got {ce_stages!r}")
        norm_cfg = norm_arguments(norm_cfg)
        self._ce_cfg = dict(norm=norm_cfg) | ce_arguments(ce_cfg)
        self._ce_stem_cfg = self._ce_cfg | ce_arguments(ce_stem_cfg, "ce_stem_cfg")
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
