"""The difference that decides whether a file is written is the largest of all outputs, over pictures of all kinds."""
import itertools
import math

import pytest
import torch

from ce_mm.export.check import BATCHES, INPUTS, SIZES, largest_difference, random_pictures


def test_twenty_inputs_have_three_sizes_and_three_batch_sizes_in_every_combination():
    pictures = list(random_pictures(3))
    assert len(pictures) == INPUTS == 20
    assert len(SIZES) == len(BATCHES) == 3
    shapes = {(x.shape[0], tuple(x.shape[2:])) for x in pictures}
    assert shapes == set(itertools.product(BATCHES, SIZES))


def test_random_pictures_are_whole_numbers_in_range_and_each_of_other_colours():
    pictures = list(random_pictures(3))
    assert all(x.dtype == torch.float32 and torch.equal(x, x.clamp(0, 255).round()) for x in pictures)
    means = torch.cat([x.mean((2, 3)) for x in pictures])
    assert means.std(0).min() > 10
    assert all(torch.equal(a, b) for a, b in zip(pictures, random_pictures(3), strict=True))


def one(*values):
    return (torch.tensor(values),)


@pytest.mark.parametrize(
    ("actual", "expected", "difference"),
    [
        (one(1.0, -4.0), one(1.0, -4.0), 0),
        (one(1.0, -3.0), one(1.0, -4.0), 0.25),
        ((torch.tensor([4.0]), torch.tensor([90.0])), (torch.tensor([4.0]), torch.tensor([100.0])), 0.1),
        (one(0.0), one(0.0), 0),
        (one(1e-9), one(0.0), math.inf),
        (one(math.nan, 1.0), one(1.0, 1.0), math.inf),
    ],
)
def test_the_difference_is_relative_to_the_largest_value_of_an_output(actual, expected, difference):
    found = largest_difference(lambda x: actual, lambda x: expected, [torch.zeros(1)])
    assert found == pytest.approx(difference)


def test_the_worst_input_counts():
    found = largest_difference(lambda x: (x + (x == 2),), lambda x: (x,), torch.tensor([[1.0], [2.0], [3.0]]))
    assert found == pytest.approx(0.5)


def failing(x):
    raise RuntimeError("first line\nsecond line")


@pytest.mark.parametrize(
    ("exported", "reference", "said"),
    [
        (lambda x: (x,), lambda x: (x, x), r"pictures of 1×2, .* gives \[\(1, 2\)\] instead of \[\(1, 2\), \(1, 2\)\]"),
        (lambda x: (x.T,), lambda x: (x,), r"\(2, 1\).* instead of .*\(1, 2\)"),
        (lambda x: (x,), lambda x: (x * math.inf,), "own output for random pictures is not finite"),
        (failing, lambda x: (x,), "^the exported network fails on pictures of 1×2: first line$"),
        (lambda x: (x,), failing, "^the network does not run on pictures of 1×2: first line; only networks"),
    ],
)
def test_what_cannot_be_compared_is_said(exported, reference, said):
    with pytest.raises(ValueError, match=said):
        largest_difference(exported, reference, [torch.ones(1, 2)])
