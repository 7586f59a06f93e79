"""The backend of plain PyTorch calls, for any device: the four passes over a map, and what moves the averages.

A pass goes over the batch in blocks of samples, so that what one call writes is still in the cache when the next one
reads it. Both memory formats are read in place: a block is a batch of matrices of g rows and H·W columns, one for each
of its samples and groups. On a CPU nothing is subtracted where the shift is zero for all channels
(:func:`ce_mm.ops.moments` leaves it so where precision allows), and x itself goes into the products.

N samples, C channels in G groups of g, P = H·W positions, K samples in a block. "Work type" is that of ``shift``:
float32 at least.
"""
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ce_mm.ops.types import Average

ASKS = OVERWRITES = frozenset({"cpu"})

#: The bytes of x in one block, at most, if it has more than one sample; the best of 1 to 32 MiB for ResNet-50.
BLOCK_BYTES = 4 * 2**20


def moments(x: Tensor, shift: Tensor, group_size: int, products: bool, per_sample: bool) -> tuple[Tensor, ...]:
    """Mean and variance of z, and, if asked, the mean of z zᵀ inside each group; see :func:`ce_mm.ops.moments`.

    On a CPU the variance cancels where a sample lies far from the shift: the caller asks for that and takes it again.
    """
    blocks = _Blocks(x, shift, group_size)
    sums = _Sums(blocks, products, per_sample)
    for k, values in enumerate(blocks.of_map(x)):
        z = blocks.shifted(k, values)
        sums.take(k, z, z)
    positions = max(x.shape[2] * x.shape[3], 1)
    samples = 1 if per_sample else max(x.shape[0], 1)
    mean, variance = instance = sums.both.div_(positions)
    if x.device.type == "cpu" or per_sample or not x.numel():
        variance -= mean.square()  # not fused to one rounding: one value has the variance 0, exactly
    else:  # one more read, as asking another device would cost more
        torch.var(x.to(shift.dtype), (2, 3), correction=0, out=variance)
    return instance, sums.product.div_(positions * samples)


def group_affine(
    x: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    diagonal: Tensor | None,
    bias: Tensor,
    residual: Tensor | None,
    rectifier: float | None,
    overwrite: bool = False,
) -> Tensor:
    """The affine map, residual add and rectifier, written over x if asked; see :func:`ce_mm.ops.group_affine`."""
    blocks = _Blocks(x, shift, 1 if weight is None else weight.shape[-1])
    y = x if overwrite else torch.empty_like(x)
    added = None if residual is None else blocks.of_map(residual)
    weights, biases = blocks.of_matrices(weight, diagonal), blocks.of_vectors(bias)
    ceiling = None if rectifier == math.inf else rectifier
    casts = y.dtype != shift.dtype
    for k, (values, out) in enumerate(zip(blocks.of_map(x), blocks.of_map(y), strict=True)):
        result = blocks.memory("result", out) if casts or overwrite else out
        if added is not None:
            torch.add(added[k], biases[k], out=result)
        _affine(weights[k], blocks.shifted(k, values), result, add=added is not None)
        if added is None:
            result += biases[k]
        if rectifier is not None:
            torch.clamp(result, 0, ceiling, out=result if casts else out)
        if casts or (overwrite and rectifier is None):
            out.copy_(result)
    return y


def output_sums(
    dy: Tensor,
    x: Tensor,
    shift: Tensor,
    rectified: Tensor | None,
    rectifier: float | None,
    keep: bool,
    group_size: int,
    products: bool,
    per_sample: bool,
) -> tuple[Tensor, ...]:
    """First pass of the backward: the gradient before the rectifier, and its sums; see :mod:`ce_mm.ops.joint`."""
    blocks = _Blocks(x, shift, group_size)
    sums = _Sums(blocks, products, per_sample)
    gradients = _Gradients(dy, rectified, blocks, rectifier)
    gradient = torch.empty_like(x, dtype=dy.dtype) if keep else dy.new_empty(0)
    kept = blocks.of_map(gradient) if keep else None
    for k, values in enumerate(blocks.of_map(x)):
        of_block = gradients.take(k, None if kept is None else kept[k])
        sums.take(k, of_block.to(shift.dtype), blocks.shifted(k, values))
    return gradient, sums.both, sums.product


def input_gradient(
    gradient: Tensor | None,
    rectified: Tensor | None,
    x: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    diagonal: Tensor | None,
    slope: Tensor | None,
    slopes: Tensor | None,
    offset: Tensor | None,
) -> Tensor:
    """Second pass of the backward: dx; see :mod:`ce_mm.ops.joint`."""
    blocks = _Blocks(x, shift, next((matrix.shape[-1] for matrix in (weight, slope) if matrix is not None), 1))
    dx = torch.empty_like(x)
    # What multiplies the gradient and z, and what is added.
    of_gradient = None
    if gradient is not None:
        gradients = _Gradients(gradient, rectified, blocks, math.inf)
        of_gradient = blocks.of_matrices(None if weight is None else weight.mT, diagonal)
    of_z = None if slope is None and slopes is None else blocks.of_matrices(slope, slopes)
    constant = None if offset is None else blocks.of_vectors(offset)
    casts = dx.dtype != shift.dtype
    for k, (values, out) in enumerate(zip(blocks.of_map(x), blocks.of_map(dx), strict=True)):
        result = blocks.memory("result", out) if casts else out
        if of_gradient is not None:
            _affine(of_gradient[k], gradients.take(k).to(shift.dtype), result, add=False)
        else:
            result.zero_()
        if of_z is not None:
            _affine(of_z[k], blocks.shifted(k, values), result, add=True)
        if constant is not None:
            result += constant[k]
        if casts:
            out.copy_(result)
    return dx


def move_averages(averages: Sequence[Average], present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Move every buffer towards its new value, or none of them if any value is not finite (paper eq. 32).

    Nothing is asked of the device: a bad batch cannot poison an average, and nobody waits. To be called under no_grad.

    Args:
        averages: what to move, and where; the values of one type.
        present: a bool (), whether there was a sample at all: otherwise no buffer moves. None: there was.

    Returns:
        Two bools of shape () on the device: whether all values are finite, and whether the buffers were moved.
    """
    total = torch.cat([value.flatten() for _, value, _ in averages]).sum()
    finite = (total - total) == 0  # neither NaN nor infinite, at a quarter of isfinite's calls
    moved = finite if present is None else finite & present
    for buffer, value, momentum in averages:
        target = torch.where(moved, value, buffer)
        buffer.lerp_(target if target.dtype == buffer.dtype else target.to(buffer.dtype), momentum)
    return finite, moved


def in_format_of(x: Tensor, values: Tensor) -> Tensor:
    """``values`` in the memory format of x, copied only where it has another."""
    return values.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last)


def contiguous(values: Tensor | None) -> Tensor | None:
    """``values``, if there are any, as one piece of memory."""
    return values if values is None or values.is_contiguous() else values.contiguous()


class _Blocks:
    """How the batch is cut into blocks of samples, and the memory that one block needs, used again for the next."""

    def __init__(self, x: Tensor, shift: Tensor, group_size: int) -> None:
        n, c = x.shape[:2]
        if not x.is_contiguous():
            samples = 1  # with channels last, the matrices of two samples do not join to one batch
        elif x.device.type == "cpu":
            samples = max(min(BLOCK_BYTES // max(4 * x.shape[1:].numel(), 1), n), 1)
        else:
            samples = max(n, 1)
        self.map, self.groups, self.group_size, self.dtype = x, c // group_size, group_size, shift.dtype
        self.matrices = samples * self.groups  # of a block
        self.buffers: dict[str, Tensor] = {}
        self.shift = None
        if x.dtype != shift.dtype or x.device.type != "cpu" or bool(shift.any()):
            self.shift = self.of_vectors(shift.view(-1, c))

    def of_map(self, values: Tensor) -> Sequence[Tensor]:
        """A map (N, C, H, W) in blocks (K G, g, P): views, if it has the memory format of x."""
        n, c, h, w = values.shape
        if self.map.is_contiguous():
            return values.contiguous().view(n * self.groups, self.group_size, h * w).split(self.matrices)
        values = values.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        return values.view(n, h * w, self.groups, self.group_size).permute(0, 2, 3, 1).unbind()

    def of_vectors(self, vectors: Tensor) -> Sequence[Tensor]:
        """(N or 1, C) in blocks of columns (K G, g, 1)."""
        return vectors.expand(self.map.shape[0], -1).reshape(-1, self.group_size, 1).split(self.matrices)

    def of_matrices(self, matrix: Tensor | None, diagonal: Tensor | None) -> Sequence[Tensor]:
        """matrix + Diag(diagonal) in blocks (K G, g, g), from (N or 1, G, g, g) and (N, C); a diagonal as columns."""
        if matrix is None:
            assert diagonal is not None
            return self.of_vectors(diagonal)
        matrix = matrix.expand(self.map.shape[0], -1, -1, -1)
        if diagonal is not None:
            matrix = matrix.clone()
            matrix.diagonal(dim1=-2, dim2=-1).add_(diagonal.view(matrix.shape[:3]))
        return matrix.reshape(-1, *matrix.shape[2:]).split(self.matrices)

    def memory(self, name: str, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Memory of this name with the shape and layout of a block, in the work type unless told."""
        if name not in self.buffers:  # the first block is the largest
            self.buffers[name] = torch.empty_like(like, dtype=dtype or self.dtype)
        return self.buffers[name][: len(like)]

    def shifted(self, k: int, values: Tensor) -> Tensor:
        """z = x - shift of block k, from its values, in the work type; in the memory "z", or the values themselves."""
        return values if self.shift is None else torch.sub(values, self.shift[k], out=self.memory("z", values))


class _Gradients:
    """The gradient before the rectifier, block by block: as it comes without one, else that of y where y is positive
    (and below the ceiling).
    """

    def __init__(self, dy: Tensor, rectified: Tensor | None, blocks: _Blocks, rectifier: float | None) -> None:
        self.blocks, self.dy, self.rectifier = blocks, blocks.of_map(dy), rectifier
        self.rectified = None if rectified is None else blocks.of_map(rectified)

    def take(self, k: int, out: Tensor | None = None) -> Tensor:
        """That of block k; after a rectifier in ``out``, or else in the memory "gradient"."""
        dy = self.dy[k]
        if self.rectified is None:
            return dy
        out = self.blocks.memory("gradient", dy, dy.dtype) if out is None else out
        if self.rectifier == math.inf:
            return torch.ops.aten.threshold_backward.grad_input(dy, self.rectified[k], 0, grad_input=out)
        return torch.ops.aten.hardtanh_backward.grad_input(dy, self.rectified[k], 0, self.rectifier, grad_input=out)


class _Sums:
    """Sums over positions of ``left``, ``left ⊙ z`` and ``left zᵀ``, where left is z itself or a gradient."""

    def __init__(self, blocks: _Blocks, products: bool, per_sample: bool) -> None:
        x, g, dtype = blocks.map, blocks.group_size, blocks.dtype
        n, c = x.shape[:2]
        self.blocks = blocks
        self.both = x.new_empty(2, n, c, dtype=dtype)
        total, inner = self.both.view(2, -1, g)
        self.total, self.inner = total.split(blocks.matrices), inner.split(blocks.matrices)
        shape = (n if per_sample else 1, blocks.groups, g, g) if products else (0,)
        self.product = x.new_zeros(shape, dtype=dtype)
        self.of_samples = self.product.flatten(0, 1).split(blocks.matrices) if products and per_sample else None

    def take(self, k: int, left: Tensor, z: Tensor) -> None:
        """Take the sums of block k."""
        torch.sum(left, -1, out=self.total[k])
        if not self.product.numel():
            if left is z:
                torch.linalg.vector_norm(z, dim=-1, out=self.inner[k]).square_()
            else:
                torch.sum(torch.mul(left, z, out=self.blocks.memory("product", z)), -1, out=self.inner[k])
            return
        product = torch.bmm(left, z.mT)
        self.inner[k].copy_(product.diagonal(dim1=-2, dim2=-1))
        if self.of_samples is None:
            self.product += product.view(-1, *self.product.shape[1:]).sum(0, keepdim=True)
        else:
            self.of_samples[k].copy_(product)


def _affine(weight: Tensor, values: Tensor, out: Tensor, add: bool) -> None:
    """``out = weight @ values`` for a batch of matrices, or added to out; a column stands for a diagonal matrix."""
    if weight.shape[-1] == 1:
        torch.addcmul(out, weight, values, out=out) if add else torch.mul(weight, values, out=out)
    elif add:
        out.baddbmm_(weight, values)
    else:
        torch.bmm(weight, values, out=out)
