"""The precision in which the operators compute."""
import torch


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """float16 and bfloat16 as float32: coordinates need the bits, and torchvision lacks some such kernels."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
