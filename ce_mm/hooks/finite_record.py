"""Which of many values were finite, by name and iteration, asked of the device for many iterations at once."""
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor

#: A name and its place among the names.
Label = tuple[int, str]


class FiniteRecord:
    """Numbers that should be finite, and flags that should be true; until they are taken they stay on their devices."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Sequence[Label], Tensor]] = []

    def add(self, iteration: int, labels: Sequence[Label], values: Tensor) -> None:
        """Record values, (labels,), of a floating type or bool; they are not copied."""
        self._parts.append((iteration, labels, values))

    def add_scalars(self, iteration: int, values: Mapping[Label, Tensor]) -> None:
        """Record values, each (), on any devices; they are copied."""
        for labels in alike(values, values.get):
            self.add(iteration, labels, torch.stack([values[label] for label in labels]))

    def take(self) -> dict[int, list[Label]]:
        """The labels of those that were not as they should be, by iteration; nothing is recorded then."""
        bad = defaultdict(list)
        for parts in alike(self._parts, lambda part: part[2]):
            values = torch.cat([values for _, _, values in parts]).cpu()
            wrong = ~(values if values.dtype == torch.bool else values.isfinite())
            if wrong.any():
                places = ((iteration, label) for iteration, labels, _ in parts for label in labels)
                for iteration, label in compress(places, wrong.tolist()):
                    bad[iteration].append(label)
        self._parts = []
        return {iteration: sorted(bad[iteration]) for iteration in sorted(bad)}


def alike(items: Iterable, tensor: Callable[[Any], Tensor]) -> list[list]:
    """Lists of those items whose tensor is on one device and of one type, which one call of PyTorch can take."""
    lists = defaultdict(list)
    for item in items:
        lists[tensor(item).device, tensor(item).dtype].append(item)
    return list(lists.values())
