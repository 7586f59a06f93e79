"""The steps of mmcv's batch norm across processes (``MMSyncBN``), which exchanges the statistics between them itself.

Shapes, of all:
    input, output, norm and their gradients: (N, C, positions); ``norm`` float32, the others of one dtype.
    mean, var, std, weight, bias, running_mean, running_var and their gradients: (C,), float32.
"""
import torch


def sync_bn_forward_mean(input: torch.Tensor, mean: torch.Tensor) -> None:
    """Overwrite ``mean``."""
    mean.copy_(input.float().mean((0, 2)))


def sync_bn_forward_var(input: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> None:
    """Overwrite ``var`` with the mean square distance from ``mean``."""
    var.copy_((input.float() - mean[:, None]).square().mean((0, 2)))


def sync_bn_forward_output(
    input: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    norm: torch.Tensor,
    std: torch.Tensor,
    output: torch.Tensor,
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


def sync_bn_backward_param(
    grad_output: torch.Tensor, norm: torch.Tensor, grad_weight: torch.Tensor, grad_bias: torch.Tensor
) -> None:
    """Overwrite ``grad_weight`` and ``grad_bias``."""
    grad_weight.copy_((grad_output.float() * norm).sum((0, 2)))
    grad_bias.copy_(grad_output.float().sum((0, 2)))


def sync_bn_backward_data(
    grad_output: torch.Tensor,
    weight: torch.Tensor,
    grad_weight: torch.Tensor,
    grad_bias: torch.Tensor,
    norm: torch.Tensor,
    std: torch.Tensor,
    grad_input: torch.Tensor,
) -> None:
    """Overwrite ``grad_input``; ``grad_weight`` and ``grad_bias`` are the means over the processes."""
    through_statistics = grad_weight[:, None] * norm + grad_bias[:, None]
    count = norm.shape[0] * norm.shape[2]
    grad_input.copy_((weight / std)[:, None] * (grad_output.float() - through_statistics / count))
