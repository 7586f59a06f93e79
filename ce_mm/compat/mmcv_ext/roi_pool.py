"""RoI pooling (Girshick, 2015): the maximum of a feature map over each cell of a box.

mmcv does not round the corners of the box, as torchvision's ``roi_pool`` does: a cell holds each pixel that it touches.
Of both directions, for maps (N, C, H, W), floating point:
    rois: (K, 5) as index of the picture, x1, y1, x2, y2 (which the box includes), in units of 1 / spatial_scale pixels.
    argmax: (K, C, pooled_height, pooled_width), int32, counted along the rows of a map; -1 where there is no pixel.
"""
import torch
from torch import Tensor

from ce_mm.compat.mmcv_ext.numerics import at_least_float32

OF_NO_PIXEL = -1


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Overwrite ``output`` with the maxima, 0 where a cell has no pixel, and ``argmax`` with their places."""
    output.zero_()
    argmax.fill_(OF_NO_PIXEL)
    corners = at_least_float32(rois[:, 1:]) * spatial_scale
    (left, top), (right, bottom) = corners[:, :2].T, (corners[:, 2:] + spatial_scale).T
    rows = _touched(top, bottom, pooled_height, input.shape[2])
    columns = _touched(left, right, pooled_width, input.shape[3])
    for k, picture in enumerate(rois[:, 0].long().tolist()):
        _pool(input[picture], rows[k], columns[k], output[k], argmax[k])


def roi_pool_backward(
    grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, **settings: float
) -> None:
    """Overwrite ``grad_input`` with the gradient, for which ``argmax`` says enough."""
    channels = torch.arange(grad_input.shape[1], device=rois.device)
    maps = rois[:, 0].long()[:, None] * grad_input.shape[1] + channels
    places = maps[:, :, None, None] * grad_input[0, 0].numel() + argmax
    found = argmax != OF_NO_PIXEL
    gradient = at_least_float32(torch.zeros_like(grad_input)).flatten()
    gradient.index_add_(0, places[found], grad_output[found].to(gradient.dtype))
    grad_input.copy_(gradient.view_as(grad_input))


def _touched(start: Tensor, end: Tensor, cells: int, size: int) -> Tensor:
    """Which of ``size`` pixels each cell touches, along one axis: (K, cells, size), bool."""
    edges = start[:, None] + torch.arange(cells + 1, device=start.device) * ((end - start) / cells)[:, None]
    pixels = torch.arange(size, device=start.device)
    touched = (pixels >= edges[:, :-1, None].floor()) & (pixels < edges[:, 1:, None].ceil())
    return touched & (start < end)[:, None, None]


def _pool(map: Tensor, rows: Tensor, columns: Tensor, output: Tensor, argmax: Tensor) -> None:
    """Pool one box of a map (C, H, W): the maxima along each row first, then of these along each column."""
    in_rows, in_columns = (which.any(0).nonzero()[:, 0] for which in (rows, columns))
    if len(in_rows) == 0 or len(in_columns) == 0:
        return
    box = map[:, in_rows][:, :, in_columns]
    rows, columns = rows[:, in_rows], columns[:, in_columns]
    along_rows, column = box[:, :, None].where(columns, -torch.inf).max(3)  # (C, h, pooled_width)
    maxima, row = along_rows[:, None].where(rows[:, :, None], -torch.inf).max(2)  # (C, pooled_height, pooled_width)
    places = in_rows[row] * map.shape[2] + in_columns[column.gather(1, row)]
    full = rows.any(1)[:, None] & columns.any(1)
    output.copy_(maxima.where(full, 0))
    argmax.copy_(places.where(full, OF_NO_PIXEL))
