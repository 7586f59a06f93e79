"""Our CE and what it is measured against: whole layers, from norm to ReLU, the others written plainly by their formula.

Every layer takes a map (N, C, H, W) of any floating type and an optional residual of the same shape, which is added
before the ReLU, and returns a new map of the same shape, type and memory format. All of them work on maps in the map's
own type and on statistics in float32 at least.
"""
import torch
from torch import Tensor, nn

from ce_mm.layers import CENorm


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
            covariance = _group_covariance(centred, groups, g)
            trace = _trace(covariance)
            whitening = _newton_schulz(covariance / trace, self.iterations) / trace.sqrt()
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), 0.1)
                self.running_whitening.lerp_(whitening, 0.1)
        else:
            centred, whitening = x - _per_channel(self.running_mean, x), self.running_whitening
        y = _group_product(whitening, centred) * _per_channel(self.weight, x) + _per_channel(self.bias, x)
        return _finish(y, residual)


class LiteralCE(nn.Module):
    """BN, then CE word by word, then ReLU: the normalised map x̃ is there, and autograd differentiates everything.

    y_n = D_n x̃_n with D_n = λ P_T + (1 - λ) Diag(f(σ̃²_n) s^(-1/2)) for every sample and group; P_T from the covariance
    of x̃, σ̃² and s from its variances, f = Sigmoid(W2 ReLU(LayerNorm(W1 ·))) with a hidden layer of C/4 channels.
    """

    def __init__(self, channels: int, group_size: int = 16, iterations: int = 3) -> None:
        super().__init__()
        self.iterations = iterations
        self.norm = nn.BatchNorm2d(channels)
        self.mix = nn.Parameter(torch.zeros(1))
        self.fc1 = nn.Linear(channels, channels // 4, bias=False)
        self.ln = nn.LayerNorm(channels // 4)
        self.fc2 = nn.Linear(channels // 4, channels, bias=False)
        self.register_buffer("running_whitening", torch.eye(group_size).repeat(channels // group_size, 1, 1))
        self.register_buffer("running_inv_std_scale", torch.ones(1))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """ReLU(CE(BN(x)) + residual)."""
        x = self.norm(x)
        groups, g, _ = self.running_whitening.shape
        # On a CPU x.var takes ten times as long; x̃ is normalised, so that this does not cancel.
        variance = (x.square().mean(dim=(2, 3)) - x.mean(dim=(2, 3)).square()).to(self.mix.dtype)
        if self.training:
            covariance = _group_covariance(x - x.mean(dim=(0, 2, 3), keepdim=True), groups, g)
            whitening = _newton_schulz(covariance / _trace(covariance), self.iterations)
            inv_std_scale = variance.mean().clamp(min=1e-5).rsqrt()
            with torch.no_grad():
                self.running_whitening.lerp_(whitening, 0.1)
                self.running_inv_std_scale.lerp_(inv_std_scale.view(1), 0.1)
        else:
            whitening, inv_std_scale = self.running_whitening, self.running_inv_std_scale
        gate = self.fc2(self.ln(self.fc1(variance)).relu()).sigmoid()
        reweighting = (gate * inv_std_scale).view(-1, groups, g)
        ratio = self.mix.sigmoid()
        return _finish(_group_product(ratio * whitening + (1 - ratio) * torch.diag_embed(reweighting), x), residual)


class FusedCE(nn.Module):
    """ce_mm's own CENorm: BN, CE, the residual add and the ReLU in the passes of one layer."""

    def __init__(self, channels: int, group_size: int = 16) -> None:
        super().__init__()
        self.ce = CENorm(channels, group_size=group_size)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """ReLU(CE(BN(x)) + residual)."""
        return self.ce(x, residual, relu=True)


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


def _group_covariance(centred: Tensor, groups: int, g: int) -> Tensor:
    """Covariances (C/g, g, g) over the batch of a map of mean 0, plus 1e-5 I, in float32 at least."""
    rows = centred.transpose(0, 1).reshape(groups, g, -1)
    covariance = rows @ rows.mT / rows.shape[-1]
    covariance = covariance.to(torch.promote_types(covariance.dtype, torch.float32))
    return covariance + 1e-5 * torch.eye(g, dtype=covariance.dtype, device=covariance.device)


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


def _newton_schulz(sigma: Tensor, iterations: int) -> Tensor:
    """P_T of P_0 = I, P_k = (3 P_(k-1) - P_(k-1)³ Σ) / 2."""
    root = torch.eye(sigma.shape[-1], dtype=sigma.dtype, device=sigma.device).expand_as(sigma)
    with torch.autocast(sigma.device.type, enabled=False):
        for _ in range(iterations):
            root = (3 * root - root @ root @ root @ sigma) / 2
    return root


def _group_product(matrices: Tensor, x: Tensor) -> Tensor:
    """The matrices ((N,) C/g, g, g) times each sample's groups of channels."""
    groups, g = matrices.shape[-3:-1]
    y = matrices.to(x.dtype) @ x.flatten(2).unflatten(1, (groups, g))
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return y.view(x.shape).contiguous(memory_format=layout)
