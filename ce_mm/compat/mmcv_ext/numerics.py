"""What the operators share: the precision that they compute in, and backward passes by autograd."""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32: coordinates need the bits, and torchvision lacks some such kernels."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor) -> tuple[Tensor, ...]:
    """The gradient of ``function(*inputs)`` with respect to each input, in float32 at least.

    mmcv calls a backward operator without the graph of the forward one: this costs one more forward pass.
    """
    with torch.enable_grad():
        leaves = [at_least_float32(tensor.detach()).requires_grad_() for tensor in inputs]
        output = function(*leaves)
        return torch.autograd.grad(output, leaves, grad_output.to(output.dtype))


def overwrite_gradients(
    results: Sequence[Tensor], function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor
) -> None:
    """Overwrite the results with the :func:`gradients`, one for each input."""
    for result, gradient in zip(results, gradients(function, inputs, grad_output), strict=True):
        result.copy_(gradient)
