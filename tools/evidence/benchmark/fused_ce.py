"""Our CE from norm to ReLU, as one layer: the layer under test. It is ce_mm's own CENorm, also with torch alone."""
from torch import Tensor, nn

from ce_mm.layers import CENorm


class FusedCE(nn.Module):
    """BN, CE, the residual add and the ReLU in the passes of one layer."""

    def __init__(self, channels: int, group_size: int = 16) -> None:
        super().__init__()
        self.ce = CENorm(channels, group_size=group_size)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """ReLU(CE(BN(x)) + residual), of x's shape, type and memory format."""
        return self.ce(x, residual, relu=True)
