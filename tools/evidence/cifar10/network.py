"""The study's network: convolution, norm and rectifier in a row, as VGG has them, the same ones all over."""
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ce_mm.layers import CENorm
from ce_mm.layers.norms import build
from ce_mm.ops import RELU

#: Of group norm; the paper's 32 would leave less than one channel a group where a layer has 16.
GROUPS = dict(type="GN", num_groups=8)


class Variant(NamedTuple):
    """What stands behind a convolution."""

    norm: dict  #: config of the norm
    rectifier: type[nn.Module] = nn.ReLU
    ce: tuple[str, ...] | None = None  #: the branches of CE after the norm
    se: bool = False  #: squeeze and excitation after the norm


BOTH = ("bd", "ir")
VARIANTS = {
    "BN+ReLU": Variant(dict(type="BN")),
    "BN+CE+ReLU": Variant(dict(type="BN"), ce=BOTH),
    "BN+LReLU": Variant(dict(type="BN"), rectifier=nn.LeakyReLU),
    "BN+ELU": Variant(dict(type="BN"), rectifier=nn.ELU),
    "BN+SE+ReLU": Variant(dict(type="BN"), se=True),
    "SN+ReLU": Variant(dict(type="SN")),
    "BN+BD+ReLU": Variant(dict(type="BN"), ce=("bd",)),
    "BN+IR+ReLU": Variant(dict(type="BN"), ce=("ir",)),
    "GN+ReLU": Variant(GROUPS),
    "GN+CE+ReLU": Variant(GROUPS, ce=BOTH),
    "IN+ReLU": Variant(dict(type="IN", affine=True)),
    "IN+CE+ReLU": Variant(dict(type="IN", affine=True), ce=BOTH),
    "LN+ReLU": Variant(dict(type="GN", num_groups=1)),
    "LN+CE+ReLU": Variant(dict(type="GN", num_groups=1), ce=BOTH),
}


class Layer(nn.Module):
    """A 3×3 convolution with what stands behind it; CE rectifies in its own last pass."""

    def __init__(self, inputs: int, outputs: int, variant: Variant) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
        if variant.ce is not None:
            self.norm = CENorm(outputs, norm=variant.norm, branches=variant.ce)
        else:
            self.norm = build(variant.norm, outputs)
        self.se = None
        if variant.se:
            from mmpretrain.models.utils import SELayer

            self.se = SELayer(outputs)
        self.rectifier = None if variant.ce is not None else variant.rectifier(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        x = self.conv(x)
        if self.rectifier is None:
            return self.norm(x, rectifier=RELU)
        x = self.norm(x)
        return self.rectifier(x if self.se is None else self.se(x))


def build_network(variant: Variant, widths: Sequence[int | str], classes: int = 10) -> nn.Sequential:
    """The network; pictures (N, 3, H, W) in, (N, classes) out.

    Args:
        variant: what stands behind each convolution.
        widths: the channels of one layer after the other, and "M" for a 2×2 max pool.
        classes: the number of classes.
    """
    layers: list[nn.Module] = []
    inputs = 3
    for width in widths:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers.append(Layer(inputs, width, variant))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
