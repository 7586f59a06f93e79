"""mmengine's count of a network's operations (``mmengine.analysis``) knows CE's operators by this table of its own."""
from collections.abc import Callable
from typing import Any

from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import get_shape

from ce_mm.ops import MULTIPLY_ADDS


def count_operators() -> None:
    """Add CE's operators to that table; a second call does nothing."""
    counts = {f"ce_mm::{name}": _handle(count) for name, count in MULTIPLY_ADDS.items()}
    complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS.update(counts)


def _handle(count: Callable[..., int]) -> Callable[[list, list], int]:
    """What mmengine calls with the values of a traced graph."""
    return lambda inputs, outputs: count(*map(_shape_or_constant, inputs))


def _shape_or_constant(value: Any) -> Any:
    return get_shape(value) if value.isCompleteTensor() else value.toIValue()
