"""The tiles that all Triton kernels cut channels into, so that matrices of whole groups lie on the diagonal of one.

The rows of a tile are as many whole groups as fit, 16 rows at least, because the matrix units take no fewer.
"""
import triton
import triton.language as tl

#: Rows of the smallest tile, the fewest that a matrix product takes.
FEWEST_ROWS = 16


def rows_of(group_size: int) -> int:
    """The rows of a tile, a power of 2."""
    return max(triton.next_power_of_2(group_size), FEWEST_ROWS)


def tiles_of(channels: int, group_size: int) -> int:
    """How many tiles the channels fill."""
    return triton.cdiv(channels, rows_of(group_size) // group_size * group_size)


@triton.jit
def tile_channels(tile, C, G: tl.constexpr, ROWS: tl.constexpr):
    """The channels of a tile's rows, and which rows have one."""
    row = tl.arange(0, ROWS)
    channel = tile * (ROWS // G * G) + row
    return channel, (row < ROWS // G * G) & (channel < C)


@triton.jit
def block_offsets(channel, present, G: tl.constexpr, ROWS: tl.constexpr):
    """Where a tile's block-diagonal matrix lies in (C/g, g, g), and which of its elements do."""
    row = tl.arange(0, ROWS)
    same_group = (row // G)[:, None] == (row // G)[None, :]
    return channel[:, None] * G + (row % G)[None, :], same_group & present[:, None] & present[None, :]
