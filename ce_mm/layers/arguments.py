"""Arguments as configs give them: what is of the wrong kind is named where it is given, not where it fails."""
import math
from typing import TypeGuard


def expect(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise the ValueError of an argument that is not what is expected.

    Args:
        holds: whether it is.
        name: whose argument it is, and which.
        value: what was given.
        expected: what should have been, and how to mend it.
    """
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def is_count(value: object, most: float = math.inf) -> TypeGuard[int]:
    """Whether it is a whole number from 1 on."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def is_number(value: object, least: float = -math.inf, most: float = math.inf) -> TypeGuard[float]:
    """Whether it is a finite number in a range."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return math.isfinite(value) and least <= value <= most
