"""Our CE and what it is measured against: whole layers, from norm to ReLU, the others written plainly by their formula.

Every layer takes a map (N, C, H, W) of any floating type and an optional residual of the same shape, which is added
before the ReLU, and returns a new map of the same shape, type and memory format. All of them work on maps in the map's
own type and on statistics in float32 at least.
"""
import torch
from torch import Tensor, nn

from ce_mm.layers import CENorm
from ce_mm.ops import RELU, compute_dtype, reference


class BatchNormReLU(nn.Module):
    """BN, then ReLU in place: the layer that all others are compared with."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """ReLU(BN(x) + residual)."""
        return _finish(self.norm(x), residual)


class SqueezeExcite(nn.Module):
    """BN, then squeeze and excitation as mmpretrain's SELayer does it, then ReLU.

    The gate of each sample and channel is Sigmoid(W2 ReLU(W1 s)), with s the mean over H·W; W1: C → C/16 (8 at least),
    W2: back to C, both 1×1 convolutions with biases.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 8)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """ReLU(SE(BN(x)) + residual)."""
        x = self.norm(x)
        gate = self.excite(self.squeeze(self.pool(x)).relu_()).sigmoid()
        return _finish(x * gate, residual)


class IterNorm(nn.Module):
    """Iterative normalization (Huang et al., CVPR 2019): ZCA whitening of groups of channels, affine, then ReLU.

    y = γ ⊙ (P_T / sqrt(tr Σ)) (x - μ) + β, where Σ is the covariance of the group over the batch plus ε I, and P_T
    comes from T Newton-Schulz steps on Σ / tr Σ. Inference uses moving averages of μ and of the matrix.
    """

    def __init__(self, channels: int, group_size: int = 16, iterations: int = 5) -> None:
        super().__init__()
        self.iterations = iterations
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_whitening", torch.eye(group_size).repeat(channels // group_size, 1, 1))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """ReLU(IterNorm(x) + residual)."""
        groups, g, _ = self.running_whitening.shape
        if self.training:
            mean = x.mean(dim=(0, 2, 3))
            centred = x - _per_channel(mean, x)
            rows = centred.to(compute_dtype(x.dtype)).transpose(0, 1).reshape(groups, g, -1)
            identity = torch.eye(g, dtype=rows.dtype, device=x.device)
            covariance = rows @ rows.mT / rows.shape[2] + 1e-5 * identity
            trace = covariance.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
            whitening = reference.newton_schulz(covariance, self.iterations) / trace.sqrt()
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), 0.1)
                self.running_whitening.lerp_(whitening, 0.1)
        else:
            centred, whitening = x - _per_channel(self.running_mean, x), self.running_whitening
        y = _group_product(whitening, centred) * _per_channel(self.weight, x) + _per_channel(self.bias, x)
        return _finish(y, residual)


class LiteralCE(nn.Module):
    """BN, then CE word by word (:mod:`ce_mm.ops.reference`), then ReLU: x̃ is formed, and autograd does the rest."""

    def __init__(self, channels: int, group_size: int = 16) -> None:
        super().__init__()
        self.group_size = group_size
        self.norm = nn.BatchNorm2d(channels)
        self.mix = nn.Parameter(torch.zeros(1))
        self.fc1 = nn.Linear(channels, channels // 4, bias=False)
        self.ln = nn.LayerNorm(channels // 4)
        self.fc2 = nn.Linear(channels // 4, channels, bias=False)
        self.register_buffer("running_whitening", torch.eye(group_size).repeat(channels // group_size, 1, 1))
        self.register_buffer("running_inv_std_scale", torch.ones(1))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """ReLU(CE(BN(x)) + residual)."""
        gate = reference.Gate(self.fc1.weight, self.ln.weight, self.ln.bias, self.fc2.weight)
        averages = reference.Averages(self.running_whitening, self.running_inv_std_scale)
        running = None if self.training else averages
        base = self.norm(x).to(compute_dtype(x.dtype))
        y, batch = reference.equilibrium(base, gate, self.mix, group_size=self.group_size, running=running)
        if self.training:
            with torch.no_grad():
                for average, value in zip(averages, batch, strict=True):
                    average.lerp_(value, 0.1)
        return _finish(_like(x, y), residual)


class FusedCE(nn.Module):
    """ce_mm's own CENorm: BN, CE, the residual add and the ReLU in the passes of one layer."""

    def __init__(self, channels: int, group_size: int = 16) -> None:
        super().__init__()
        self.ce = CENorm(channels, group_size=group_size)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """ReLU(CE(BN(x)) + residual)."""
        return self.ce(x, residual, RELU)


#: What is measured, by the names in the tables; all ratios are to the first.
VARIANTS: dict[str, type[nn.Module]] = {
    "BN": BatchNormReLU,
    "BN+SE": SqueezeExcite,
    "IterNorm": IterNorm,
    "literal CE": LiteralCE,
    "CE": FusedCE,
}


def _finish(y: Tensor, residual: Tensor | None) -> Tensor:
    if residual is not None:
        y += residual
    return y.relu_()


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    return vector.to(x.dtype)[None, :, None, None]


def _group_product(matrices: Tensor, x: Tensor) -> Tensor:
    """The matrices ((N,) C/g, g, g) times each sample's groups of channels."""
    groups, g = matrices.shape[-3:-1]
    y = matrices.to(x.dtype) @ x.flatten(2).unflatten(1, (groups, g))
    return _like(x, y.view(x.shape))


def _like(x: Tensor, y: Tensor) -> Tensor:
    """y in the type and memory format of x."""
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return y.to(x.dtype).contiguous(memory_format=layout)
