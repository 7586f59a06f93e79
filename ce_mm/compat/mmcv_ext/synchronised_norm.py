"""The steps of mmcv's batch norm across processes (``MMSyncBN``), which exchanges the statistics between them itself.

Shapes, of all:
    input, output, norm and their gradients: (N, C, positions); ``norm`` float32, the others of one dtype.
    mean, var, std, weight, bias, running_mean, running_var and their gradients: (C,), float32.
"""
from torch import Tensor


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Overwrite ``mean``."""
    mean.copy_(input.float().mean((0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Overwrite ``var`` with the mean square distance from ``mean``."""
    var.copy_((input.float() - mean[:, None]).square().mean((0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float,
    group_size: int,
) -> None:
    """Overwrite ``std``, ``norm`` and ``output``, and move the averages by ``momentum``.

    The average of the variance takes Bessel's correction for the elements of ``group_size`` processes.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((input.float() - mean[:, None]) / std[:, None])
    output.copy_(norm * weight[:, None] + bias[:, None])
    count = input.shape[0] * input.shape[2] * group_size
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * (count / max(count - 1, 1)), momentum)


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Overwrite ``grad_weight`` and ``grad_bias``."""
    grad_weight.copy_((grad_output.float() * norm).sum((0, 2)))
    grad_bias.copy_(grad_output.float().sum((0, 2)))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Overwrite ``grad_input``; ``grad_weight`` and ``grad_bias`` are the means over the processes."""
    through_statistics = grad_weight[:, None] * norm + grad_bias[:, None]
    count = norm.shape[0] * norm.shape[2]
    grad_input.copy_((weight / std)[:, None] * (grad_output.float() - through_statistics / count))
