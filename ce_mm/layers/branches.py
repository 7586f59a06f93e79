"""The two branches of CE as modules: parameters, buffers and numbers, of which :class:`~ce_mm.layers.CENorm` computes.

They are never called, and no hook on them or on what they hold is. To study another branch, give CENorm a subclass.
"""
import torch
from torch import Tensor, nn

from ce_mm import ops


class Branch(nn.Module):
    """What both have in common."""

    def __init_subclass__(cls) -> None:
        if "forward" in vars(cls):
            raise TypeError(
                f"{cls.__name__} has a forward, which would never be called: CE's branches hold parameters, and CENorm "
                "computes; override what it computes in a subclass of CENorm"
            )


class BatchDecorrelation(Branch):
    """Batch decorrelation (BD): one matrix Σ^(-1/2) per group of channels, shared by the batch (paper eq. 20).

    Args:
        num_features: C.
        group_size: g; halved until it divides C.
        iterations: T, the Newton-Schulz steps.
        max_pool: take Σ of the normalised map after a 2×2 max pool, the paper's saving for the stem. Maps smaller than
            2×2 are not pooled.
        eps: ε, added to Σ's diagonal (times M / M_pooled after a pool, as the authors do).

    Buffers:
        running_whitening: (C/g, g, g), the moving average of Σ^(-1/2), from I.
    """

    running_whitening: Tensor

    def __init__(
        self, num_features: int, group_size: int = 16, iterations: int = 3, max_pool: bool = False, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.group_size = ops.fit_group_size(num_features, group_size)
        self.iterations = iterations
        self.max_pool = max_pool
        self.eps = eps
        groups = num_features // self.group_size
        self.register_buffer("running_whitening", torch.eye(self.group_size).repeat(groups, 1, 1))

    def is_at_start(self) -> bool:
        """Whether no batch has moved the average; asks the device."""
        start = torch.eye(self.group_size, dtype=self.running_whitening.dtype, device=self.running_whitening.device)
        return torch.equal(self.running_whitening, start.expand_as(self.running_whitening))

    def extra_repr(self) -> str:
        """What print(module) shows of the arguments."""
        return f"group_size={self.group_size}, iterations={self.iterations}, max_pool={self.max_pool}"


class InstanceReweighting(Branch):
    """Instance reweighting (IR): a gate for every sample and channel from the variances inside that sample.

    ``Diag(v_n)^(-1/2) = f(σ̃²_n) s^(-1/2)`` with ``f = Sigmoid(W2 ReLU(LayerNorm(W1 σ̃²)))`` (paper eq. 21). Of ``fc1``,
    ``ln`` and ``fc2`` the weights alone are used: what else is put in their place is refused.

    Args:
        num_features: C.
        reduction: r; W1 maps C to C // r channels.
        correction: 1 for the authors' unbiased σ̃², in training and inference.

    Buffers:
        running_inv_std_scale: (1,), the moving average of s^(-1/2), from 1.
    """

    running_inv_std_scale: Tensor

    def __init__(self, num_features: int, reduction: int = 4, correction: int = 0) -> None:
        super().__init__()
        hidden = num_features // reduction
        self.correction = correction
        self.fc1 = nn.Linear(num_features, hidden, bias=False)
        self.ln = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, num_features, bias=False)
        self.register_buffer("running_inv_std_scale", torch.ones(1))

    def is_at_start(self) -> bool:
        """Whether no batch has moved the average; asks the device."""
        return bool(self.running_inv_std_scale.eq(1).all())
