import copy
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from ce_mm.hooks.seeding import seed_batches, seed_generators

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


def batches(loading, first=0, seed=1):
    seed_batches(loading, seed).next = first
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
    numbered = seed_batches(loading, 1)

    def epoch(first):
        numbered.next = first
        return list(loading)

    first = epoch(8)
    assert first != epoch(12)
    assert first == epoch(8)


def test_a_stream_that_goes_on_later_goes_on_as_it_would_have():
    expected = batches(loader())
    order = [index for batch in expected for index, *_ in batch]
    rest = DataLoader(Noisy(), 3, sampler=order[6:], collate_fn=list)

    assert batches(rest, first=2) == expected[2:]


def test_every_batch_and_seed_has_numbers_of_its_own():
    first = batches(loader())
    numbers = [tuple(sample[1:]) for batch in first for sample in batch]

    assert len(set(numbers)) == SIZE
    for other in (batches(loader(), first=4), batches(loader(), seed=2)):
        assert not set(numbers) & {tuple(sample[1:]) for batch in other for sample in batch}


def test_the_batch_sampler_is_otherwise_as_it_was():
    loading = loader()
    numbered = seed_batches(loading, 0)
    loading.batch_sampler.sampler.set_epoch(3)

    assert loading.sampler.epoch == 3
    assert len(loading) == len(numbered) == SIZE / 3
    assert numbered.batch_size == 3


def test_a_second_call_replaces_the_first():
    loading = loader(Batched())
    batches(loading, seed=2)

    assert batches(loading) == batches(loader(Batched()))


@pytest.mark.parametrize("sampler", [[[0, 1], [2, 3]], [(0, 1), (2, 3)], BatchSampler(range(4), 2, False)])
def test_batches_of_any_sampler_are_numbered(sampler):
    expected = batches(DataLoader(Noisy(), batch_sampler=[[0, 1], [2, 3]], collate_fn=list))

    assert batches(DataLoader(Noisy(), batch_sampler=sampler, collate_fn=list)) == expected


def test_indices_may_be_anything():
    named = {name: Noisy() for name in "abcdef"}

    class ByName(Noisy):
        def __getitem__(self, index):
            return named[index][0]

    def make(**settings):
        return DataLoader(ByName(), 3, sampler=list(named), collate_fn=list, **settings)

    assert batches(make(num_workers=1)) == batches(make())


@pytest.mark.parametrize(
    "loading",
    [
        DataLoader(Stream(), 3),
        DataLoader(Noisy(), None),
        DataLoader(Slotted(), 3),
        DataLoader([0, 1, 2], 3),
        Foreign(),
    ],
    ids=["iterable", "no-batches", "slots", "list", "not-pytorch-s"],
)
def test_what_cannot_be_seeded_is_left_as_it_is(loading):
    assert seed_batches(loading, 0) is None
    assert not hasattr(loading.dataset, "__getitems__")


def test_an_empty_batch_is_fetched_as_one():
    loading = DataLoader(Noisy(), batch_sampler=BatchSampler([0, 1], 3, False), collate_fn=list)
    seed_batches(loading, 0)

    assert loading.dataset.__getitems__([]) == []


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


def test_a_loader_can_be_copied():
    def batches():
        whole = DataLoader(Noisy(), 3, sampler=range(SIZE), collate_fn=list)
        seed_batches(whole, 0)
        return list(copy.deepcopy(whole))

    torch.manual_seed(1)
    first = batches()
    torch.manual_seed(2)
    assert batches() == first
