"""The focal losses (Lin et al., 2017), in plain PyTorch. mmdet takes mmcv's operator for predictions on a GPU.

Of the truth's probability p, a loss is -α (1 - p)^γ log p, computed in float32 at least, of log p and log(1 - p), which
stay finite. Of all:
    target: (N,), int64, the class of each sample.
    weight: (C,), multiplies the losses of the samples of a class, or empty for none.
    settings: gamma γ, and alpha α.
"""
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ce_mm.compat.mmcv_ext.numerics import at_least_float32, overwrite_gradients


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, **settings: float
) -> None:
    """Overwrite ``output`` (N, C) with the loss of each class as a question of its own: is the sample of it, or not?

    ``input`` (N, C) are logits. Where a sample is not of the class, 1 - α takes the place of α; a target that is not
    among 0 to C - 1 is of no class, and has no weight.
    """
    output.copy_(_sigmoid_loss(input, target, weight, **settings))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, **settings: float
) -> None:
    """Overwrite ``grad_input`` (N, C) with the derivative of each loss; see :func:`sigmoid_focal_loss_forward`."""
    loss = partial(_sigmoid_loss, target=target, weight=weight, **settings)
    overwrite_gradients([grad_input], loss, [input], torch.ones_like(input))


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, **settings: float
) -> None:
    """Overwrite ``output`` (N,) with the loss of each sample, 0 for a negative class.

    ``input`` (N, C) are probabilities, the softmax of the logits.
    """
    output.copy_(_softmax_loss(_logits(input), target, weight, **settings))


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, **settings: float
) -> None:
    """Overwrite ``grad_input`` (N, C) with the derivatives by the logits; see :func:`softmax_focal_loss_forward`.

    ``buff`` is room for the compiled operator, unused here.
    """
    loss = partial(_softmax_loss, target=target, weight=weight, **settings)
    overwrite_gradients([grad_input], loss, [_logits(input)], input.new_ones(len(input)))


def _sigmoid_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    logits, of_class = at_least_float32(logits), _of_class(logits, target)
    of_truth = torch.where(of_class, logits, -logits)
    scale = torch.where(of_class, alpha, 1 - alpha)
    if len(weight):
        scale = scale * weight[target, None]
    return -scale * (gamma * F.logsigmoid(-of_truth)).exp() * F.logsigmoid(of_truth)


def _softmax_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    log_p, target_or_0 = logits.log_softmax(1), target.clamp_min(0)
    log_rest = log_p.masked_fill(_of_class(logits, target_or_0), torch.finfo(logits.dtype).min).logsumexp(1)
    scale = torch.where(target >= 0, alpha, 0.0)
    if len(weight):
        scale = scale * weight[target_or_0]
    return -scale * (gamma * log_rest).exp() * log_p.gather(1, target_or_0[:, None])[:, 0]


def _of_class(logits: Tensor, target: Tensor) -> Tensor:
    """Whether a sample is of a class: (N, C), bool."""
    return target[:, None] == torch.arange(logits.shape[1], device=logits.device)


def _logits(probabilities: Tensor) -> Tensor:
    """Finite logits of probabilities, which are these up to a constant."""
    p = at_least_float32(probabilities)
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()
