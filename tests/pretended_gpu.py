"""A GPU that is not there, whose tensors have no values; and who asks for one, or copies from or to the host, fails.

On a GPU such a question waits for all that was launched before it, and cannot be captured in a CUDA graph.
"""
import contextlib
from types import SimpleNamespace
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
QUESTIONS = {
    aten._local_scalar_dense, aten.is_nonzero, aten.nonzero, aten.equal, aten.masked_select, aten.unique_dim,
    aten._unique2, aten.bincount,
}  # fmt: skip
#: Modules that take another way where a mode looks on, as this one does.
WATCHFUL = ["ops.custom_op", "ops.usual", "ops.group_affine", "ops.base_norms", "layers.ce_norm"]


class Waits(AssertionError):
    """The host would wait for the GPU."""


class NothingIsAsked(TorchDispatchMode):
    """Raises :class:`Waits` where the host would wait for a device."""

    def __init__(self, device="cuda"):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        if operator.overloadpacket in QUESTIONS and any(value.device.type == self.device for value in given):
            raise Waits(operator.name())
        result = operator(*args, **kwargs or {})
        made = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        copies = operator.overloadpacket in (aten._to_copy, aten.copy_)
        # A number of the host's may be an argument of a kernel, but is not copied to the device without waiting.
        met = [value for value in given if value.dim() or copies] + made
        if len({value.device.type for value in met}) > 1:
            raise Waits(f"{operator.name()} between devices")
        return result


@contextlib.contextmanager
def unwatched():
    """Nobody notices a mode."""
    with contextlib.ExitStack() as stack:
        for name in WATCHFUL:
            stack.enter_context(mock.patch(f"ce_mm.{name}.is_watched", lambda tensors: False))
        yield


@contextlib.contextmanager
def pretended_gpu(captures=False):
    """New tensors are on the GPU, and code that looks at devices and at modes goes the way that a training on one goes.

    Autograd's engine needs a GPU that is there, so there is no backward.

    Args:
        captures: whether a CUDA graph is being captured.
    """
    with unwatched(), contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("torch.cuda.device_of", lambda x: contextlib.nullcontext()))
        stack.enter_context(mock.patch("torch.cuda.is_current_stream_capturing", lambda: captures))
        stack.enter_context(mock.patch("torch.cuda.get_device_capability", lambda device: (9, 0)))
        properties = SimpleNamespace(multi_processor_count=132)
        stack.enter_context(mock.patch("torch.cuda.get_device_properties", lambda device: properties))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(torch.device("cuda"))
        yield
