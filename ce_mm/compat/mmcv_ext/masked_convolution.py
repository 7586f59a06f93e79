"""Masked convolution: at chosen positions only. mmcv multiplies between the two steps that it asks for.

``mask_h_idx`` and ``mask_w_idx`` (P,), int64, are the rows and columns of the positions.
"""
import torch
import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    features: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    data_col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Overwrite ``data_col`` (C · kernel_h · kernel_w, P) with what the kernel sees of ``features`` (1, C, H, W)."""
    padded = F.pad(features[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=features.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=features.device)[:, None]
    data_col.copy_(padded[:, rows, columns].flatten(0, 2))


def masked_col2im_forward(col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, **size: int) -> None:
    """Overwrite ``im`` (1, C, H, W) at the positions with ``col`` (C, P)."""
    im[0, :, mask_h_idx, mask_w_idx] = col
