"""The focal losses (Lin et al., 2017), in plain PyTorch. mmdet takes mmcv's operator for predictions on a GPU.

Of the truth's probability p, a loss is -α (1 - p)^γ log p, computed in float32 at least.
"""
import torch
import torch.nn.functional as F

from ce_mm.compat.mmcv_ext.precision import at_least_float32


def sigmoid_focal_loss_forward(
    input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, output: torch.Tensor, gamma: float, alpha: float
) -> None:
    """Overwrite ``output`` with the loss of each class as a question of its own: is the sample of it, or not?

    Args:
        input: (N, C), logits, floating point.
        target: (N,), int64, the class of each sample; one that is not among 0 to C - 1 is of none of them.
        weight: (C,), multiplies the loss of the samples of a class (all must be of one, then), or empty for none.
        output: (N, C), the dtype of ``input``.
        gamma: exponent γ.
        alpha: α where the sample is of the class; 1 - α elsewhere.
    """
    of_class = _of_class(input, target)
    z = _logit_of_truth(input, of_class)
    output.copy_(-_scale(of_class, target, weight, alpha) * torch.sigmoid(-z) ** gamma * F.logsigmoid(z))


def sigmoid_focal_loss_backward(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    grad_input: torch.Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Overwrite ``grad_input`` (N, C) with the derivative of each loss; see :func:`sigmoid_focal_loss_forward`."""
    of_class = _of_class(input, target)
    z = _logit_of_truth(input, of_class)
    p, rest = torch.sigmoid(z), torch.sigmoid(-z)
    by_z = -_scale(of_class, target, weight, alpha) * rest**gamma * (rest - gamma * p * F.logsigmoid(z))
    grad_input.copy_(torch.where(of_class, by_z, -by_z))


def _of_class(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Whether a sample is of a class: (N, C), bool."""
    return target[:, None] == torch.arange(input.shape[1], device=input.device)


def _logit_of_truth(input: torch.Tensor, of_class: torch.Tensor) -> torch.Tensor:
    logits = at_least_float32(input)
    return torch.where(of_class, logits, -logits)


def _scale(of_class: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, alpha: float) -> torch.Tensor:
    """α or 1 - α, times the weight of the sample's class: (N, C)."""
    scale = torch.where(of_class, alpha, 1 - alpha)
    return scale * weight.index_select(0, target)[:, None] if len(weight) else scale


def softmax_focal_loss_forward(
    input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, output: torch.Tensor, gamma: float, alpha: float
) -> None:
    """Overwrite ``output`` with the loss of each sample.

    Args:
        input: (N, C), probabilities (the softmax of the logits), floating point.
        target: (N,), int64, the class of each sample; a sample of a negative class has the loss 0.
        weight: (C,), multiplies the loss of the samples of a class, or empty for none.
        output: (N,), the dtype of ``input``.
        gamma: exponent γ.
        alpha: factor α of all losses.
    """
    p = _probability_of_truth(input, target)
    log_p = p.clamp_min(torch.finfo(p.dtype).tiny).log()
    output.copy_(-_sample_scale(target, weight, alpha) * (1 - p) ** gamma * log_p)


def softmax_focal_loss_backward(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    buff: torch.Tensor,
    grad_input: torch.Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Overwrite ``grad_input`` (N, C) with the derivatives by the logits; see :func:`softmax_focal_loss_forward`.

    ``buff`` is room for the compiled operator, unused here.
    """
    p = _probability_of_truth(input, target)
    rest = 1 - p
    # p log p / (1 - p) tends to -1 where p tends to 1, and is multiplied with (1 - p)^γ: any finite number does there.
    ratio = torch.xlogy(p, p) / rest.clamp_min(torch.finfo(p.dtype).tiny)
    slope = _sample_scale(target, weight, alpha) * rest**gamma * (gamma * ratio - 1)
    grad_input.copy_(slope[:, None] * (_of_class(input, target).to(p.dtype) - at_least_float32(input)))


def _probability_of_truth(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return at_least_float32(input).gather(1, target.clamp_min(0)[:, None])[:, 0]


def _sample_scale(target: torch.Tensor, weight: torch.Tensor, alpha: float) -> torch.Tensor:
    """α times the weight of the sample's class, or 0 for a negative class: (N,)."""
    scale = torch.where(target >= 0, alpha, 0.0)
    return scale * weight.index_select(0, target.clamp_min(0)) if len(weight) else scale
