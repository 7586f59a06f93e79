"""A CENorm's layer taken literally: PyTorch's own norm (for SN the reference's), then the paper's equations."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ce_mm.layers import CENorm, SwitchableNorm
from ce_mm.ops.reference import Averages, Gate, equilibrium, switchable_norm


def literal_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """The base norm of x; it moves BN's and SN's buffers."""
    if isinstance(norm, SwitchableNorm):
        running = None if norm.training else (norm.running_mean.clone(), norm.running_var.clone())
        if norm.training:
            F.batch_norm(x, norm.running_mean, norm.running_var, training=True)
            norm.num_batches_tracked += 1
        return switchable_norm(x, norm.mean_weight, norm.var_weight, norm.weight, norm.bias, norm.eps, running)
    if isinstance(norm, nn.GroupNorm) and norm.num_groups == 1:
        return F.layer_norm(x, x.shape[1:]) * norm.weight[:, None, None] + norm.bias[:, None, None]
    return norm(x)


def literal_layer(ce: CENorm, x: Tensor, **arguments: object) -> tuple[Tensor, dict[str, Tensor]]:
    """CE of x, and what its buffers become.

    Args:
        ce: the layer, whose base norm's buffers move.
        x: (N, C, H, W).
        arguments: further ones of :func:`ce_mm.ops.reference.equilibrium`, as ``max_pool``.
    """
    bd, ir, group_size = ce.bd, ce.ir, 1 if ce.bd is None else ce.bd.group_size
    gate = None if ir is None else Gate(ir.fc1.weight, ir.ln.weight, ir.ln.bias, ir.fc2.weight)
    running = Averages(None if bd is None else bd.running_whitening, None if ir is None else ir.running_inv_std_scale)
    y, batch = equilibrium(
        literal_norm(ce.norm, x), gate, ce.mix, branches=ce.branches, group_size=group_size,
        running=None if ce.norm.training else running, **arguments,
    )  # fmt: skip
    buffers = dict(ce.named_buffers())
    for name, before, found in (
        ("bd.running_whitening", running.whitening, batch.whitening),
        ("ir.running_inv_std_scale", running.inv_std_scale, batch.inv_std_scale),
    ):
        if before is not None and ce.norm.training:
            buffers[name] = torch.lerp(before, found.detach(), ce.momentum)
    return y, buffers
