"""A custom operator that eager PyTorch runs without the dispatcher.

torch.compile, export, fake tensors and modes such as FlopCounterMode must see one operator, whose inside they never
look at. The way there costs more Python than a small map costs arithmetic, and a training loop needs none of it: there
the same kernel and the same backward run as a plain function or a torch.autograd.Function.
"""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_ORDINARY = {Tensor, nn.Parameter, type(None), bool, int, float}


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
        kernel = self._kernel

        class Function(torch.autograd.Function):
            # Not with setup_context beside forward: PyTorch then looks at the signature in every call.
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                output = kernel(*inputs)
                setup_context(ctx, inputs, output)
                return output

        Function.backward = staticmethod(once_differentiable(backward))
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
    """Whether somebody beside autograd looks at the call: a compiler, a tracer, a mode or a subclass."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or not _ORDINARY.issuperset(map(type, inputs))
        or any(value.is_meta for value in inputs if isinstance(value, Tensor))
    )
