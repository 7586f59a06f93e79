"""The backbone of ResNet-50 on torch alone, with a free choice of the layers where CE-ResNet and SE-ResNet differ.

The choice is the stem's norm (with its ReLU), and the last norm of each block, with the residual add and the ReLU that
follow it. CE stands at the stem and in stages 1 to 3, SE in all stages.
"""
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from tools.evidence.benchmark.layers import BatchNormReLU

BLOCKS = (3, 4, 6, 3)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions, and the shortcut.

    Args:
        last: the layer after the third convolution; takes its map and the shortcut's.
    """

    def __init__(self, in_channels: int, width: int, stride: int, last: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, width, 1, bias=False),
            BatchNormReLU(width),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            BatchNormReLU(width),
            nn.Conv2d(width, 4 * width, 1, bias=False),
        )
        self.last = last
        self.shortcut = nn.Identity()
        if stride > 1 or in_channels != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """From (N, in_channels, H, W) to (N, 4 width, H/stride, W/stride)."""
        return self.last(self.body(x), self.shortcut(x))


def resnet50(
    layer: Callable[[int], nn.Module], stem: bool, stages: Sequence[bool], blocks: Sequence[int] = BLOCKS
) -> nn.Sequential:
    """ResNet-50 without its head, from (N, 3, H, W) to (N, 2048, H/32, W/32).

    Args:
        layer: makes the layer for a number of channels.
        stem: whether it stands in the stem (else BN and ReLU).
        stages: for each of the four stages, whether it stands at the end of its blocks.
        blocks: in each of the four stages.
    """
    modules = [
        nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        (layer if stem else BatchNormReLU)(64),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            last = (layer if stages[stage] else BatchNormReLU)(4 * width)
            modules.append(Bottleneck(channels, width, stride, last))
            channels = 4 * width
    return nn.Sequential(*modules)
