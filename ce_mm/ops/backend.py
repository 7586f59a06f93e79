"""Which kernels run: Triton's for a GPU of NVIDIA's, plain PyTorch's for everything else."""
import functools
import logging
from types import ModuleType

import torch
from torch import Tensor

from ce_mm.ops import plain
from ce_mm.ops.operator import is_watched

#: What the Triton kernels take; float64 is left to plain PyTorch.
KERNEL_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def kernels(x: Tensor) -> ModuleType:
    """The module whose four passes run on x: ``ce_mm.ops.triton_kernels`` or ``ce_mm.ops.plain``.

    Triton is imported when the first tensor asks for it. Where it is missing, one line in the log says so.
    """
    if x.is_cuda and x.dtype in KERNEL_TYPES and _has_tf32(x.device):
        return _triton_kernels()
    return plain


def coefficient_kernels(*tensors: Tensor) -> ModuleType | None:
    """:mod:`ce_mm.ops.triton_coefficients` for tensors where the Triton kernels run, by the first one, else None.

    None too while somebody looks at the calls: a compiler joins the small ones by itself.
    """
    if is_watched(tensors) or kernels(tensors[0]) is plain:
        return None
    from ce_mm.ops import triton_coefficients

    return triton_coefficients


@functools.cache
def _has_tf32(device: torch.device) -> bool:
    """Whether Triton and its tf32 products support the GPU: NVIDIA's from compute capability 8.0 (Ampere) on."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def _triton_kernels() -> ModuleType:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        logging.getLogger(__name__).warning(
            "Channel Equilibrium runs on the GPU in plain PyTorch calls, which are slower than its Triton kernels: "
            "%s. To have the kernels, install Triton (pip install triton) and start again.",
            error,
        )
        return plain
    from ce_mm.ops import triton_kernels

    return triton_kernels
