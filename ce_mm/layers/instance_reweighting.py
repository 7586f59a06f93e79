"""Instance reweighting (IR): a gate for every sample and channel from the variances inside that sample."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ce_mm import ops


class InstanceReweighting(nn.Module):
    """``Diag(v_n)^(-1/2) = f(σ̃²_n) s^(-1/2)`` with ``f = Sigmoid(W2 ReLU(LayerNorm(W1 σ̃²)))`` (paper eq. 21).

    Args:
        num_features: C.
        reduction: r; W1 maps C to C // r channels.
        correction: 1 for the authors' unbiased σ̃², in training and inference.

    Buffers:
        running_inv_std_scale: (1,), the moving average of s^(-1/2), from 1.
    """

    def __init__(self, num_features: int, reduction: int = 4, correction: int = 0) -> None:
        super().__init__()
        hidden = num_features // reduction
        self.correction = correction
        self.fc1 = nn.Linear(num_features, hidden, bias=False)
        self.ln = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, num_features, bias=False)
        self.register_buffer("running_inv_std_scale", torch.ones(1))

    def variance(self, mean: Tensor, square: Tensor, scale: Tensor, positions: int) -> Tensor:
        """σ̃²_n, (N, C), of the base norm's output, from the moments m_n and diag E_n of z and the norm's a, (1, C)."""
        return scale.square() * ops.instance_variance(mean, square, positions, self.correction)

    @staticmethod
    def inv_std_scale(variance: Tensor) -> Tensor:
        """s^(-1/2), (1,), of σ̃² (N, C): s is its mean, at least 1e-5."""
        return variance.mean().clamp(min=1e-5).rsqrt().view(1)

    def forward(self, variance: Tensor) -> Tensor:
        """The gate f(σ̃²), (N, C) between 0 and 1, in the type of ``variance``."""
        dtype = variance.dtype
        hidden = F.linear(variance, self.fc1.weight.to(dtype))
        hidden = F.layer_norm(
            hidden, self.ln.normalized_shape, self.ln.weight.to(dtype), self.ln.bias.to(dtype), self.ln.eps
        )
        return F.linear(hidden.relu(), self.fc2.weight.to(dtype)).sigmoid()
