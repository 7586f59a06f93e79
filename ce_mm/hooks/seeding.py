"""Random numbers that depend on a place in the training, and on nothing that came before it.

States of generators would have to be kept for every process, data loading workers included, which are batches ahead of
the training, and which a resumed run starts anew. A place is known wherever a training is resumed, whatever the number
of workers: every batch of indices leaves its sampler with its number, and the data set seeds the generators of its
process by it before it fetches the batch (PyTorch lets a data set fetch whole batches by ``__getitems__``).
"""
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset


def seed_generators(*place: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch, on all devices.

    Args:
        place: whole numbers of at least 0, first the training's seed. Each place has numbers of its own.
    """
    sequence = np.random.SeedSequence((len(place), *place))  # to which (1,) and (1, 0) would be one
    for_python, for_numpy, for_torch = sequence.generate_state(3).tolist()
    random.seed(for_python)
    np.random.seed(for_numpy)
    if get_device() == "cpu":
        torch.default_generator.manual_seed(for_torch)  # 2 µs, where torch.manual_seed looks for GPUs for 250
    else:
        torch.manual_seed(for_torch)


def seed_batches(loader: DataLoader, *place: int) -> "NumberedBatches | None":
    """Make the random numbers (crops, flips) of a loader's batches depend on ``place`` and the batch's number alone.

    Call it before the loader is iterated; of several calls the last one counts.

    Args:
        loader: its data set and batch sampler are changed in place.
        place: as for :func:`seed_generators`.

    Returns:
        What numbers the batches, or None where ``loader`` is as it was: one that is not PyTorch's or makes no batches,
        or a data set that is iterated or takes no attributes.
    """
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return None
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__dict__"):
        return None
    # By vars, past a __setattr__ that forbids it: DataLoader's, or that of a frozen data set.
    vars(dataset)["__getitems__"] = partial(_fetch, dataset, getattr(dataset, "__getitems__", None), place)
    vars(loader)["batch_sampler"] = batches = NumberedBatches(loader.batch_sampler)
    return batches


class NumberedBatches:
    """A batch sampler, but for its batches, each of which knows its number: ``next`` is that of the next one."""

    def __init__(self, batches: BatchSampler | Iterable) -> None:
        self.batches, self.next = batches, 0

    def __getattr__(self, name: str) -> Any:
        if name == "batches":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list]:
        for batch in self.batches:
            self.next += 1
            yield _Numbered(batch, self.next - 1)


class _Numbered(list):
    def __init__(self, indices: Iterable = (), number: int = 0) -> None:
        super().__init__(indices)
        self.number = number


def _fetch(dataset: Dataset, theirs: Callable[[list], list] | None, place: tuple[int, ...], indices: list) -> list:
    """``__getitems__`` of a data set, seeded by the number of the batch."""
    if isinstance(indices, _Numbered):
        seed_generators(*place, indices.number)
    indices = list(indices)
    return theirs(indices) if theirs else [dataset[index] for index in indices]
