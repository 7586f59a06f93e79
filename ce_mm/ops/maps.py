"""What a map is: one check of it for whoever takes one. The passes read memory by its shape, and would not notice."""
from torch import Tensor


def check_map(taker: str, x: Tensor, channels: int | None = None, residual: Tensor | None = None) -> None:
    """Refuse what cannot be read as a map, or added to one.

    Args:
        taker: who takes it, for the message.
        x: to be of shape (N, C, H, W), of a real floating type.
        channels: C, or None where any will do.
        residual: to be of x's shape and on its device; its type and layout are its own.

    Raises:
        ValueError: a shape or a device differs.
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
