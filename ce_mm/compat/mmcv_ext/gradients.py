"""The backward operators of mmcv's interface, by autograd through the forward computation."""
from collections.abc import Callable, Sequence

import torch

from ce_mm.compat.mmcv_ext.precision import at_least_float32


def gradients(
    function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], grad_output: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The gradient of ``function(*inputs)`` with respect to each input, in float32 at least.

    mmcv calls a backward operator without the graph of the forward one: this costs one more forward pass.
    """
    with torch.enable_grad():
        leaves = [at_least_float32(tensor.detach()).requires_grad_() for tensor in inputs]
        output = function(*leaves)
        return torch.autograd.grad(output, leaves, grad_output.to(output.dtype))


def overwrite_gradients(
    results: Sequence[torch.Tensor],
    function: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor],
    grad_output: torch.Tensor,
) -> None:
    """Overwrite the results with the :func:`gradients`, one for each input."""
    for result, gradient in zip(results, gradients(function, inputs, grad_output), strict=True):
        result.copy_(gradient)
