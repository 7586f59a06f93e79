"""Who looks at a layer beside its caller.

A tracer of torch.fx sees calls, hooks see maps, and a CUDA graph that is being captured keeps what is launched, to
launch it again when nobody calls the layer any more.
"""
from typing import Any

import torch
from torch import nn
from torch.fx import Proxy
from torch.nn.modules.module import _has_any_global_hook


def one_call(layer: nn.Module, x: Proxy, **kwargs: Any) -> Proxy:
    """A layer as one node of the graph that is being traced, as tracers take PyTorch's own layers.

    What happens inside depends on shapes and devices, which a trace does not have.
    """
    tracer: Any = x.tracer  # one that goes by modules, which its type does not say
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), (x,), kwargs)


def is_seen(module: nn.Module) -> bool:
    """Whether somebody may see, and keep, what a module or a part of it takes and returns."""
    return (
        torch.compiler.is_compiling()
        or _has_any_global_hook()
        or any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    )


def is_captured() -> bool:
    """Whether a CUDA graph is being captured; to be asked where a map is on a GPU.

    Nothing may be asked of the device then, and what was before the graph may be gone when it is launched again.
    """
    return not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()
