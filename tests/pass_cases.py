"""Arguments for every pass of a backend, what all of them give, and how close two backends have to be."""
from types import SimpleNamespace

import torch

from ce_mm import ops

LAYOUTS = [torch.contiguous_format, torch.channels_last]
#: The largest error, as a share of the largest value.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-7}


def problem(n=2, c=16, h=7, w=11, g=4, samples=1, dtype=torch.float32, layout=LAYOUTS[0], device="cpu"):
    """Arguments for every pass, by their names."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(device)  # noqa: E731
    half = draw(samples, c // g, g, g)
    a_map = lambda: draw(n, c, h, w).to(dtype).contiguous(memory_format=layout)  # noqa: E731
    return SimpleNamespace(
        x=a_map(), dy=a_map(), residual=a_map(), rectified=a_map().relu(), shift=draw(c), g=g,
        weight=draw(samples, c // g, g, g), diagonal=draw(n, c), bias=draw(n, c),
        slope=half + half.mT, slopes=draw(n, c), offset=draw(n, c),
    )  # fmt: skip


def all_passes(module, p):
    """The results of all four passes, every one with all it can have."""
    return (
        *module.moments(p.x, p.shift, p.g, True, False),
        module.group_affine(p.x, p.shift, p.weight, p.diagonal, p.bias, p.residual, ops.RELU),
        *module.output_sums(p.dy, p.x, p.shift, p.rectified, ops.RELU, True, p.g, True, False),
        module.input_gradient(p.dy, p.rectified, p.x, p.shift, p.weight, p.diagonal, p.slope, p.slopes, p.offset),
    )


def assert_same(mine, theirs, dtype=torch.float32):
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
        if other.numel():
            error = (one.double() - other.double()).abs().max() / other.double().abs().max().clamp_min(1e-30)
            assert error <= TOLERANCE[dtype]
