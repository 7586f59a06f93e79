"""The four passes over a map, in plain PyTorch calls for any device: what the custom operators run without Triton.

A pass goes over the batch in blocks of samples, so that what one call writes is still in the cache when the next one
reads it. Both memory formats are read in place, as matrices of g rows and H·W columns for each sample and group. On a
CPU nothing is subtracted where the shift is zero for all channels (:func:`ce_mm.ops.moments` leaves it so where
precision allows), and x itself goes into the products.

N samples, C channels in G groups of g, P = H·W positions. "Work type" is that of ``shift``: float32 at least.
"""
from collections.abc import Iterator

import torch
from torch import Tensor

#: The bytes of x in one block, at most, if it has more than one sample; the best of 1 to 32 MiB for ResNet-50.
BLOCK_BYTES = 4 * 2**20


def moments(x: Tensor, shift: Tensor, group_size: int, products: bool, per_sample: bool) -> tuple[Tensor, ...]:
    """Means of z and z², and, if asked, of z zᵀ inside each group; see :func:`ce_mm.ops.moments`."""
    blocks, sums = _Blocks(x, shift, group_size), _Sums(x, shift, group_size, products, per_sample)
    for block in blocks:
        z = blocks.shifted(block)
        sums.take(block, z, z, blocks)
    positions = max(x.shape[2] * x.shape[3], 1)
    samples = 1 if per_sample else max(x.shape[0], 1)
    return sums.both.div_(positions), sums.product.div_(positions * samples)


def group_affine(
    x: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    diagonal: Tensor | None,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    overwrite: bool = False,
) -> Tensor:
    """The affine map, residual add and ReLU, written over x if asked; see :func:`ce_mm.ops.group_affine`."""
    n = x.shape[0]
    group_size = 1 if weight is None else weight.shape[-1]
    y = x if overwrite else torch.empty_like(x)
    blocks, out = _Blocks(x, shift, group_size), _matrices(y, group_size)
    if residual is not None:
        residual = _matrices(in_format_of(x, residual), group_size)
    weight = _per_sample(weight, diagonal, n, group_size)
    bias = _columns(bias, group_size).expand(n, -1, -1, -1)
    casts = y.dtype != shift.dtype
    for block in blocks:
        result = blocks.memory("result", block) if casts or overwrite else out[block]
        if residual is not None:
            torch.add(residual[block], bias[block], out=result)
        _affine(weight[block], blocks.shifted(block), result, add=residual is not None)
        if residual is None:
            result += bias[block]
        if relu:
            torch.clamp_min(result, 0, out=result if casts else out[block])
        if casts or (overwrite and not relu):
            out[block] = result
    return y


def output_sums(
    dy: Tensor,
    x: Tensor,
    shift: Tensor,
    rectified: Tensor | None,
    keep: bool,
    group_size: int,
    products: bool,
    per_sample: bool,
) -> tuple[Tensor, ...]:
    """First pass of the backward: the gradient before the ReLU, and its sums; see :mod:`ce_mm.ops.joint`."""
    dy = in_format_of(x, dy)
    blocks, sums = _Blocks(x, shift, group_size), _Sums(x, shift, group_size, products, per_sample)
    gradients = _Gradients(dy, rectified, x, group_size)
    gradient = torch.empty_like(dy) if keep else dy.new_empty(0)
    kept = _matrices(gradient, group_size) if keep else None
    for block in blocks:
        values = gradients.take(block, blocks, None if kept is None else kept[block])
        sums.take(block, values.to(shift.dtype), blocks.shifted(block), blocks)
    return gradient, sums.both, sums.product


def input_gradient(
    gradient: Tensor | None,
    rectified: Tensor | None,
    x: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    diagonal: Tensor | None,
    dmean: Tensor | None,
    dsquare: Tensor | None,
    dsecond: Tensor | None,
) -> Tensor:
    """Second pass of the backward: dx; see :mod:`ce_mm.ops.joint`."""
    n, positions = x.shape[0], max(x.shape[2] * x.shape[3], 1)
    group_size = next((matrix.shape[-1] for matrix in (weight, dsecond) if matrix is not None), 1)
    dx = torch.empty_like(x)
    blocks, out = _Blocks(x, shift, group_size), _matrices(dx, group_size)
    # What multiplies the gradient and z, matrices (N, G, g, g) or columns (N, G, g, 1), and what is added.
    of_gradient = of_z = constant = None
    if gradient is not None:
        gradients = _Gradients(gradient, rectified, x, group_size)
        of_gradient = _per_sample(None if weight is None else weight.mT, diagonal, n, group_size)
    if dsecond is not None or dsquare is not None:
        slope = None
        if dsecond is not None:
            samples = n if dsecond.shape[0] == 1 else 1
            slope = (dsecond + dsecond.mT) / (positions * max(samples, 1))
        of_z = _per_sample(slope, None if dsquare is None else dsquare * (2 / positions), n, group_size)
    if dmean is not None:
        constant = _columns(dmean / positions, group_size)
    for block in blocks:
        result = out[block] if dx.dtype == shift.dtype else blocks.memory("result", block)
        if of_gradient is not None:
            _affine(of_gradient[block], gradients.take(block, blocks).to(shift.dtype), result, add=False)
        else:
            result.zero_()
        if of_z is not None:
            _affine(of_z[block], blocks.shifted(block), result, add=True)
        if constant is not None:
            result += constant[block]
        if dx.dtype != shift.dtype:
            out[block] = result
    return dx


def product_shape(x: Tensor, group_size: int, per_sample: bool) -> tuple[int, int, int, int]:
    """The shape of one g×g matrix for each group of x: (1 or N, C/g, g, g)."""
    n, c = x.shape[:2]
    return n if per_sample else 1, c // group_size, group_size, group_size


class _Blocks:
    """The batch in blocks of samples, as slices, and the memory that one block needs, used again for the next."""

    def __init__(self, x: Tensor, shift: Tensor, group_size: int) -> None:
        n = x.shape[0]
        if not x.is_contiguous():
            self.samples = 1  # with channels last, the matrices of two samples do not join to one batch
        elif x.device.type == "cpu":
            self.samples = max(min(BLOCK_BYTES // max(4 * x[:1].numel(), 1), n), 1)
        else:
            self.samples = max(n, 1)
        self.x, self.shift = _matrices(x, group_size), _columns(shift.view(-1, x.shape[1]), group_size)
        self.buffers: dict[str, Tensor] = {}
        self.subtract = x.dtype != shift.dtype or x.device.type != "cpu" or bool(shift.any())

    def __iter__(self) -> Iterator[slice]:
        n = self.x.shape[0]
        return (slice(start, min(start + self.samples, n)) for start in range(0, n, self.samples))

    def memory(self, name: str, block: slice, dtype: torch.dtype | None = None) -> Tensor:
        """Memory of this name with the shape and layout of x[block], in the work type unless told."""
        if name not in self.buffers:
            self.buffers[name] = torch.empty_like(self.x[: self.samples], dtype=dtype or self.shift.dtype)
        return self.buffers[name][: block.stop - block.start]

    def shifted(self, block: slice) -> Tensor:
        """z = x - shift of the block, in the work type; in the memory "z", or x itself."""
        if not self.subtract:
            return self.x[block]
        shift = self.shift if self.shift.shape[0] == 1 else self.shift[block]
        return torch.sub(self.x[block], shift, out=self.memory("z", block))


class _Gradients:
    """The gradient before the ReLU, block by block: that of y where y is positive, or as it comes without a ReLU."""

    def __init__(self, dy: Tensor, rectified: Tensor | None, x: Tensor, group_size: int) -> None:
        self.dy = _matrices(in_format_of(x, dy), group_size)
        self.rectified = None if rectified is None else _matrices(in_format_of(x, rectified), group_size)

    def take(self, block: slice, blocks: _Blocks, out: Tensor | None = None) -> Tensor:
        """That of one block; after a ReLU in ``out``, or else in the memory "gradient"."""
        dy = self.dy[block]
        if self.rectified is None:
            return dy
        out = blocks.memory("gradient", block, dy.dtype) if out is None else out
        return torch.ops.aten.threshold_backward.grad_input(dy, self.rectified[block], 0, grad_input=out)


class _Sums:
    """Sums over positions of ``left``, ``left ⊙ z`` and ``left zᵀ``, where left is z itself or a gradient."""

    def __init__(self, x: Tensor, shift: Tensor, group_size: int, products: bool, per_sample: bool) -> None:
        n, c = x.shape[:2]
        groups = c // group_size
        self.both = shift.new_empty(2, n, c)
        self.columns = self.both.view(2, n, groups, group_size)
        self.products, self.per_sample = products, per_sample
        self.product = shift.new_zeros(product_shape(x, group_size, per_sample) if products else (0,))

    def take(self, block: slice, left: Tensor, z: Tensor, blocks: _Blocks) -> None:
        """Take the sums of one block."""
        total, inner = self.columns
        torch.sum(left, -1, out=total[block])
        if not self.products:
            if left is z:
                torch.linalg.vector_norm(z, dim=-1, out=inner[block]).square_()
            else:
                torch.sum(torch.mul(left, z, out=blocks.memory("product", block)), -1, out=inner[block])
            return
        product = torch.bmm(_joined(left), _joined(z).mT).view(*left.shape[:3], -1)
        inner[block] = product.diagonal(dim1=-2, dim2=-1)
        if self.per_sample:
            self.product[block] = product
        else:
            self.product += product.sum(0, keepdim=True)


def _matrices(x: Tensor, group_size: int) -> Tensor:
    """A view (N, G, g, P) of a dense map of either memory format."""
    n, c, h, w = x.shape
    if x.is_contiguous():
        return x.view(n, c // group_size, group_size, h * w)
    return x.permute(0, 2, 3, 1).view(n, h * w, c // group_size, group_size).permute(0, 2, 3, 1)


def in_format_of(x: Tensor, values: Tensor) -> Tensor:
    """``values`` in the memory format of x, copied only where it has another."""
    return values.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last)


def _columns(vectors: Tensor, group_size: int) -> Tensor:
    """(n, C) as columns (n, G, g, 1)."""
    n, c = vectors.shape
    return vectors.view(n, c // group_size, group_size, 1)


def _per_sample(matrix: Tensor | None, diagonal: Tensor | None, n: int, group_size: int) -> Tensor:
    """matrix + Diag(diagonal) for every sample, (n, G, g, g); without a matrix, the diagonal's columns (n, G, g, 1)."""
    if matrix is None:
        return _columns(diagonal, group_size)
    matrix = matrix.expand(n, -1, -1, -1)
    if diagonal is not None:
        matrix = matrix.clone()
        matrix.diagonal(dim1=-2, dim2=-1).add_(diagonal.view(matrix.shape[:3]))
    return matrix


def _affine(weight: Tensor, values: Tensor, out: Tensor, add: bool) -> None:
    """``out = weight @ values`` for every sample and group, or added to out; a column stands for a diagonal matrix."""
    if weight.shape[-1] == 1:
        torch.addcmul(out, weight, values, out=out) if add else torch.mul(weight, values, out=out)
    elif add:
        _joined(out).baddbmm_(_joined(weight), _joined(values))
    else:
        torch.bmm(_joined(weight), _joined(values), out=_joined(out))


def _joined(block: Tensor) -> Tensor:
    """(n, G, a, b) as one batch (n G, a, b), a view."""
    return block[0] if block.shape[0] == 1 else block.flatten(0, 1)
