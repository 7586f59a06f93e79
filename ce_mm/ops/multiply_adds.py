"""What the four passes over a map cost, for whoever counts the operations of a network by the shapes of its operators.

A multiply-add counts once, and so does a lone subtraction or sum of an element. PyTorch's ``FlopCounterMode``, which
takes one for two operations, is told here; a tool with a table of its own takes :data:`MULTIPLY_ADDS`.
"""
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ce_mm.compat.after_import import after_import

Shape = Sequence[int]


def _moments(x: Shape, shift: Any, mean: Any, variance: Any, group_size: int, products: bool, per_sample: Any) -> int:
    """Subtract the shift, sum, and multiply with all channels of the group, or with itself alone."""
    return math.prod(x) * (2 + (group_size if products else 1))


def _group_affine(x: Shape, shift: Any, weight: Shape | None, *_: Any) -> int:
    """Subtract the shift, and multiply with a row of the group's matrix or one number; the bias starts the sum."""
    return math.prod(x) * (1 + _width(weight))


def _output_sums(
    dy: Shape, x: Shape, shift: Any, rectified: Any, rectifier: Any, keep: Any, group_size: int, products: bool, *_: Any
) -> int:
    """As for the moments, with the gradient for one of the two factors."""
    return math.prod(x) * (2 + (group_size if products else 1))


def _input_gradient(
    gradient: Shape | None, rectified: Any, x: Shape, shift: Any, weight: Shape | None, diagonal: Any,
    slope: Shape | None, slopes: Shape | None, offset: Any,
) -> int:  # fmt: skip
    """Multiply the gradient as the affine map does, and the map less its shift with the gradient of its moments."""
    of_gradient = 0 if gradient is None else _width(weight)
    of_z = 0 if slope is None and slopes is None else 1 + _width(slope)
    return math.prod(x) * (of_gradient + of_z)


def _width(matrices: Shape | None) -> int:
    return 1 if matrices is None else matrices[-1]


#: Of each operator, by its name in ``ce_mm::``: its arguments, shapes in the place of tensors, to multiply-adds.
MULTIPLY_ADDS: dict[str, Callable[..., int]] = {
    "moments": _moments,
    "group_affine": _group_affine,
    "output_sums": _output_sums,
    "input_gradient": _input_gradient,
}


def _tell_pytorch() -> None:
    from torch.utils.flop_counter import register_flop_formula

    for name, count in MULTIPLY_ADDS.items():
        formula = lambda *inputs, out_shape=None, count=count: 2 * count(*inputs)  # noqa: E731
        register_flop_formula(getattr(torch.ops.ce_mm, name))(formula)


after_import("torch.utils.flop_counter", _tell_pytorch)  # which imports Triton, and logs where it is missing
