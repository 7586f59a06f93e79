import copy
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from ce_mm.hooks.seeded_batches import seed_batches, skips
from ce_mm.hooks.seeding import seed_generators

SIZE = 12


class Noisy(Dataset):
    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        assert type(index) is int  # what data sets and their configs expect
        return index, random.random(), float(np.random.rand()), float(torch.rand(()))


class Batched(Noisy):
    """A data set that fetches whole batches itself."""

    def __getitems__(self, indices):
        offset = random.random()
        return [(*self[index], offset) for index in indices]


class Frozen(Noisy):
    """A data set that lets nobody set an attribute, as a frozen dataclass."""

    def __setattr__(self, name, value):
        raise AttributeError(name)


class Slotted:
    """A data set that has no room for another attribute."""

    __slots__ = ()
    __len__, __getitem__ = Noisy.__len__, Noisy.__getitem__


class OwnBatches:
    """Batches from a sampler that nobody can replace."""

    sampler = property(lambda self: range(SIZE))

    def __iter__(self):
        return iter([[0, 1], [2, 3]])


class Foreign:
    """A loader that is not PyTorch's."""

    dataset = Noisy()

    def __iter__(self):
        return iter([])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(SIZE))


def loader(dataset=None, **settings):
    dataset = Noisy() if dataset is None else dataset
    return DataLoader(dataset, 3, sampler=DefaultSampler(dataset, seed=0), collate_fn=list, **settings)


def batches(loading, start=0, drawn=0, seed=1):
    sampler = seed_batches(loading, seed)
    sampler.start, sampler.drawn = start, drawn
    return list(loading)


@pytest.mark.parametrize(
    "dataset",
    [Noisy, Batched, Frozen, lambda: Subset(Noisy(), range(SIZE)), lambda: ConcatDataset([Noisy(), Noisy()])],
    ids=["single", "batched", "frozen", "subset", "concatenated"],
)
@pytest.mark.parametrize("settings", [dict(num_workers=1), dict(num_workers=2, persistent_workers=True)])
def test_batches_do_not_depend_on_who_makes_them(dataset, settings):
    assert batches(loader(dataset(), **settings)) == batches(loader(dataset()))


def test_workers_that_persist_make_the_same_epoch_twice_if_it_starts_at_the_same_place():
    loading = loader(num_workers=2, persistent_workers=True)
    first = batches(loading, start=8)
    other = batches(loading, start=12)

    assert first != other
    assert batches(loading, start=8) == first


def test_a_stream_that_goes_on_later_goes_on_as_it_would_have():
    expected = batches(loader())
    order = [index for batch in expected for index, *_ in batch]
    rest = DataLoader(Noisy(), 3, sampler=order[6:], collate_fn=list)

    assert batches(rest, drawn=6) == expected[2:]


def test_every_batch_start_and_seed_has_numbers_of_its_own():
    first = batches(loader())
    numbers = [tuple(sample[1:]) for batch in first for sample in batch]

    assert len(set(numbers)) == SIZE
    for other in (batches(loader(), start=1), batches(loader(), drawn=1), batches(loader(), seed=2)):
        assert not set(numbers) & {tuple(sample[1:]) for batch in other for sample in batch}


def test_the_sampler_is_still_the_sampler():
    loading = loader()
    sampler = seed_batches(loading, 0)
    sampler.set_epoch(3)

    assert loading.sampler.epoch == 3
    assert len(sampler) == len(loading.sampler) == SIZE
    assert not hasattr(sampler, "skip")


def test_a_second_call_replaces_the_first():
    loading = loader(Batched())
    batches(loading, seed=2)

    assert batches(loading) == batches(loader(Batched()))


def test_a_list_of_samples_stays_a_list():
    loading = loader(list(range(SIZE)))

    assert sorted(sample for batch in batches(loading) for sample in batch) == list(range(SIZE))


@pytest.mark.parametrize(
    "loading",
    [
        DataLoader(Stream(), 3),
        DataLoader(Noisy(), None),
        DataLoader(Noisy(), batch_sampler=[[0, 1], [2, 3]]),
        DataLoader(Noisy(), batch_sampler=OwnBatches()),
        DataLoader(Slotted(), 3),
        Foreign(),
    ],
    ids=["iterable", "no-batches", "no-sampler", "own-sampler", "slots", "not-pytorch-s"],
)
def test_what_cannot_be_placed_is_left_as_it_is(loading):
    assert seed_batches(loading, 0) is None
    assert not hasattr(loading.dataset, "__getitems__")


def test_an_empty_batch_is_fetched_as_one():
    loading = DataLoader(Noisy(), batch_sampler=BatchSampler([0, 1], 3, False), collate_fn=list)
    seed_batches(loading, 0)

    assert loading.dataset.__getitems__([]) == []


def test_a_batch_sampler_that_looks_at_its_sampler_s_class_sees_it():
    loading = loader()
    sampler = seed_batches(loading, 0)

    assert isinstance(sampler, DefaultSampler)
    assert isinstance(copy.deepcopy(sampler), DefaultSampler)


def test_only_a_sampler_that_can_skip_is_told_to():
    infinite = InfiniteSampler(Noisy(), seed=0)

    assert skips(DataLoader(Noisy(), 3, sampler=infinite)) == hasattr(infinite, "skip")
    assert not skips(loader())
    assert skips(DataLoader(Noisy(), batch_sampler=BatchSampler(infinite, 3, False))) == hasattr(infinite, "skip")


def test_aspect_ratios_are_grouped_as_before():
    from mmdet.datasets.samplers import AspectRatioBatchSampler

    dataset = Noisy()
    dataset.get_data_info = lambda index: dict(width=1 + index % 2, height=1)
    make = lambda: DataLoader(  # noqa: E731
        dataset, batch_sampler=AspectRatioBatchSampler(DefaultSampler(dataset, seed=0), 3), collate_fn=list
    )
    plain = [[sample[0] for sample in batch] for batch in make()]

    assert [[sample[0] for sample in batch] for batch in batches(make())] == plain


def test_a_place_has_its_numbers_and_no_other():
    def numbers(*place):
        seed_generators(*place)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    places = [(0,), (1,), (0, 1), (1, 0), (0, 0, 1), (2**31 - 1, 2, 10**9)]
    drawn = [numbers(*place) for place in places]

    assert drawn == [numbers(*place) for place in places]
    assert len({number for triple in drawn for number in triple}) == 3 * len(places)


def test_indices_of_numpy_are_placed_as_well_and_the_loader_can_be_copied():
    def batches():
        whole = DataLoader(Noisy(), 3, sampler=list(np.arange(SIZE)), collate_fn=list)
        seed_batches(whole, 0)
        return list(copy.deepcopy(whole))

    torch.manual_seed(1)
    first = batches()
    torch.manual_seed(2)
    assert batches() == first
