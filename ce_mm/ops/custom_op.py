"""What all operators on maps share: what a map is, full precision, and how eager PyTorch runs a custom operator without
the dispatcher.

torch.compile, export, fake tensors and modes such as FlopCounterMode must see one operator, whose inside they never
look at. The way there costs more Python than a small map costs arithmetic, and a training loop needs none of it: there
the same kernel and the same backward run as a plain function or a torch.autograd.Function.
"""
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

_ORDINARY = {Tensor, nn.Parameter, type(None), bool, int, float}


def check_map(
    taker: str,
    x: Tensor,
    channels: int | None = None,
    residual: Tensor | None = None,
    rectifier: float | None = None,
) -> None:
    """Refuse what cannot be read as a map, or added to one: the passes go by its shape, and would not notice.

    Args:
        taker: who takes it, for the message.
        x: to be of shape (N, C, H, W), of a real floating type.
        channels: C, or None where any will do.
        residual: to be of x's shape and on its device; its type and layout are its own.
        rectifier: the ceiling of one, to be above 0.

    Raises:
        ValueError: a shape or a device differs, or the rectifier is no ceiling.
        TypeError: whole numbers, booleans or complex numbers, which the result would be cut to.
    """
    if x.dim() != 4 or x.shape[1] != (channels or x.shape[1]):
        raise ValueError(f"{taker} takes a map of shape (N, {channels or 'C'}, H, W), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{taker} takes a map of a floating type, got {x.dtype}; convert it first, with x.float()")
    if residual is not None and (residual.shape != x.shape or residual.device != x.device):
        raise ValueError(
            f"{taker} adds a residual of the map's own shape and device, {tuple(x.shape)} on {x.device}, "
            f"got {tuple(residual.shape)} on {residual.device}"
        )
    if residual is not None and residual.is_complex():
        raise TypeError(f"{taker} adds a residual of real numbers, got {residual.dtype}")
    is_number = isinstance(rectifier, (int, float)) and not isinstance(rectifier, bool)
    if rectifier is not None and not (is_number and rectifier > 0):
        raise ValueError(f"{taker}'s rectifier must be its ceiling, ops.RELU or a number above 0, got {rectifier!r}")


def product_shape(x: Tensor, group_size: int, per_sample: bool) -> tuple[int, int, int, int]:
    """The shape of one g×g matrix for each group of x: (1 or N, C/g, g, g)."""
    n, c = x.shape[:2]
    return n if per_sample else 1, c // group_size, group_size, group_size


def full_precision(device_type: str, surely: bool = False) -> AbstractContextManager:
    """Autocast off, where it is on: coefficients need float32, and the passes over a map cast what they write.

    Args:
        device_type: of the tensors.
        surely: whether it may be on elsewhere than where this is asked.
    """
    if torch.amp.is_autocast_available(device_type) and (surely or torch.is_autocast_enabled(device_type)):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def once_in_full_precision(backward: Callable) -> Callable:
    """A decorator of an autograd function's backward, which may run inside of autocast; differentiable once."""

    def exact(ctx: Any, *gradients: Tensor | None) -> Any:
        device = next((gradient.device.type for gradient in gradients if gradient is not None), "cpu")
        # A compiler asks in the middle of the forward, where autocast is off, and traces the backward where it is on.
        with full_precision(device, surely=torch.compiler.is_compiling()):
            return backward(ctx, *gradients)

    return once_differentiable(exact)


class Operator:
    """What :func:`operator` makes of a kernel: call it as the kernel."""

    def __init__(self, name: str, kernel: Callable) -> None:
        self._kernel = kernel
        self._custom = torch.library.custom_op(name, kernel, mutates_args=())
        self._function: type[torch.autograd.Function] | None = None
        self.register_fake = self._custom.register_fake

    def register_autograd(self, backward: Callable, setup_context: Callable) -> None:
        """As CustomOpDef's; the result can be differentiated once."""
        self._custom.register_autograd(backward, setup_context=setup_context)
        kernel, exact = self._kernel, once_in_full_precision(backward)

        class Function(torch.autograd.Function):
            # Not with setup_context beside forward: PyTorch then looks at the signature in every call.
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                output = kernel(*inputs)
                setup_context(ctx, inputs, output)
                return output

            backward = staticmethod(exact)

        self._function = Function

    def __call__(self, *inputs: Any) -> Any:
        """Run the operator; all arguments by position."""
        if is_watched(inputs):
            return self._custom(*inputs)
        if self._function is None or not torch.is_grad_enabled():
            return self._kernel(*inputs)
        return self._function.apply(*inputs)


def operator(name: str) -> Callable[[Callable], Operator]:
    """A decorator: the function, of tensors and numbers by position, becomes the operator of this name."""
    return lambda kernel: Operator(name, kernel)


def is_watched(inputs: tuple) -> bool:
    """Whether somebody beside autograd looks on: a compiler, a tracer, a mode, forward-mode AD or a subclass."""
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or not _ORDINARY.issuperset(map(type, inputs))
    ):
        return True
    for value in inputs:  # noqa: SIM110 - a generator is called once for each value
        if isinstance(value, Tensor) and value.is_meta:
            return True
    return False
