"""Batches whose random numbers (crops, flips) depend on their place in the stream, in whichever process they are made.

mmengine seeds its workers when they start, and the workers of a resumed run start later. Here every index leaves the
sampler with its place, and the data set seeds the generators of its process by it before it fetches a batch:
PyTorch lets a data set fetch whole batches by ``__getitems__``.
"""
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler

from ce_mm.hooks.seeding import seed_generators


def seed_batches(loader: DataLoader, *place: int) -> "PlacingSampler | None":
    """Make the batches of ``loader`` depend on ``place``, the sampler's own ``start``, and their number alone.

    Call it before the loader is iterated; a second call replaces the first.

    Args:
        loader: its data set and batch sampler are changed in place.
        place: where its stream lies, as for :func:`~ce_mm.hooks.seeding.seed_generators`.

    Returns:
        What counts the indices, or None where batches cannot be placed and ``loader`` is as it was: a loader that is
        not PyTorch's, a data set that is iterated or takes no attributes, no batches, or a batch sampler that is not
        built on a sampler.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    dataset, batches = loader.dataset, loader.batch_sampler
    draws = type(dataset) not in (list, tuple)
    if (draws and not hasattr(dataset, "__dict__")) or "sampler" not in getattr(batches, "__dict__", ()):
        return None
    if not isinstance(batches.sampler, PlacingSampler):
        batches.sampler = PlacingSampler(batches.sampler)
    if draws:
        fetch = vars(dataset).get("__getitems__")
        theirs = fetch.theirs if isinstance(fetch, _SeededFetch) else getattr(dataset, "__getitems__", None)
        vars(dataset)["__getitems__"] = _SeededFetch(dataset, theirs, place)  # past a __setattr__ that forbids it
    return batches.sampler


def skips(loader: DataLoader) -> bool:
    """Whether mmengine resumes an iteration-based training by telling the sampler, without drawing from it."""
    return type(loader.batch_sampler) is BatchSampler and hasattr(loader.batch_sampler.sampler, "skip")


class PlacingSampler:
    """A sampler, also to ``isinstance``, but for its indices: they know their place, ``start`` and how many were drawn.

    Attributes:
        start: whole numbers that say where the stream begins; set it together with ``drawn``.
        drawn: how many indices have been drawn, or skipped.
        unplaced: whether some were no whole numbers (but tuples, say), and left without their place.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.start, self.drawn = 0, 0
        self.unplaced = False

    @property
    def __class__(self) -> type:
        return type(self.sampler) if "sampler" in vars(self) else PlacingSampler

    def __getattr__(self, name: str) -> Any:
        if name == "sampler":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        for index in self.sampler:
            if isinstance(index, Integral):
                yield _PlacedIndex(index, (self.start, self.drawn))
            else:
                self.unplaced = True
                yield index
            self.drawn += 1


class _PlacedIndex(int):
    def __new__(cls, index: int, place: tuple[int, ...]) -> "_PlacedIndex":
        self = super().__new__(cls, index)
        self.place = place
        return self

    def __reduce__(self) -> tuple:  # on its way to a worker
        return _PlacedIndex, (int(self), self.place)


class _SeededFetch:
    """``__getitems__`` of a data set, seeded by the place of the batch's first index."""

    def __init__(self, dataset: Dataset, theirs: Any, place: tuple[int, ...]) -> None:
        self.dataset, self.theirs, self.place = dataset, theirs, place

    def __call__(self, indices: Sequence[int]) -> list:
        if len(indices) and isinstance(indices[0], _PlacedIndex):
            seed_generators(*self.place, *indices[0].place)
        plain = [int(index) if isinstance(index, _PlacedIndex) else index for index in indices]
        return self.theirs(plain) if self.theirs else [self.dataset[index] for index in plain]
