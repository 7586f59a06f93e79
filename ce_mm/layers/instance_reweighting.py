"""Instance reweighting (IR): a gate for every sample and channel from the variances inside that sample."""
import torch
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

    def forward(
        self, moments: ops.Moments, scale: Tensor, positions: int, inv_std_scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``Diag(v_n)^(-1/2)`` of the base norm's output.

        Args:
            moments: of z.
            scale: (1 or N, C), the base norm's a.
            positions: H·W.
            inv_std_scale: s^(-1/2), (1,), or None to take it from the samples given here.

        Returns:
            (N, C), in the type of the moments, and the s^(-1/2) that was used, (1,).
        """
        return ops.reweighting(moments.instance, scale, self.gate(scale.dtype), self.bessel(positions), inv_std_scale)

    def gate(self, dtype: torch.dtype) -> ops.Gate:
        """The parameters of f.

        Raises:
            TypeError: something else stands in the place of fc1, ln or fc2, with a forward that would never be called.
        """
        for name, kind in dict(fc1=nn.Linear, ln=nn.LayerNorm, fc2=nn.Linear).items():
            module = getattr(self, name)
            if not _is_plain(module, kind):
                plain = "a plain nn.Linear without bias" if kind is nn.Linear else "a plain nn.LayerNorm"
                raise TypeError(
                    f"ir.{name} must be {plain}, of which CE uses the weight alone, got {module!r}; leave CE's ir out "
                    "where layers are adapted or quantised, or fold the network first, which leaves none in it"
                )
        weights = (self.fc1.weight, self.ln.weight, self.ln.bias, self.fc2.weight)
        return ops.Gate(*(weight.to(dtype) for weight in weights), self.ln.eps)

    def is_at_start(self) -> bool:
        """Whether no batch has moved the average; asks the device."""
        return bool((self.running_inv_std_scale == 1).all())

    def bessel(self, positions: int) -> float:
        """The factor of the biased σ̃² of so many positions."""
        return positions / max(positions - self.correction, 1)


def _is_plain(module: nn.Module, kind: type[nn.Linear | nn.LayerNorm]) -> bool:
    """Whether all that a call of the module would compute is told by its weights, as they stand."""
    calls_its_own = type(module).forward is kind.forward and "forward" not in vars(module)
    # Pruning, and spectral and weight norm before they were parametrisations, compute the weight in a hook.
    waits_for_hook = bool(module._forward_pre_hooks) and "weight" not in module._parameters
    return calls_its_own and (module.bias is None) == (kind is nn.Linear) and not waits_for_hook
