"""A file runs where this package is not, and the largest difference of all outputs decides whether it is written."""
import itertools
import math

import pytest
import torch
from torch import nn

from ce_mm.export import check
from ce_mm.export.check import BATCHES, INPUTS, SIZES, largest_difference, random_pictures, run_alone
from ce_mm.layers import SwitchableNorm, fold


class Tuple(nn.Module):
    """The formats take networks whose result is a tuple."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return (self.network(x),)


@pytest.fixture
def save(tmp_path):
    """Write a module as TorchScript, without a look at its operators; the path."""

    def write(module):
        with torch.no_grad():
            torch.jit.trace(Tuple(module).eval(), torch.zeros(2, 8, 5, 5)).save(tmp_path / "network.pt")
        return tmp_path / "network.pt"

    return write


def test_a_network_of_standard_operators_computes_alone_what_it_does_here(save):
    norm = SwitchableNorm(8).eval()
    batches = [torch.rand(shape) for shape in [(1, 8, 4, 4), (3, 8, 2, 7)]]
    torch.testing.assert_close(run_alone("torchscript", save(fold(norm)), batches), [(norm(x),) for x in batches])


def test_a_network_that_needs_this_package_does_not_load(save):
    said = r"as torchscript, .* not run .* without ce_mm and OpenMMLab: loading it: .*ce_mm::moments"
    with pytest.raises(ValueError, match=said):
        run_alone("torchscript", save(SwitchableNorm(8)), [])


def test_pictures_on_which_a_network_fails_are_named(save):
    with pytest.raises(ValueError, match=r"pictures of 1×3×4×4: The following operation failed .* \(status 1\)"):
        run_alone("torchscript", save(nn.Conv2d(8, 2, 1)), [torch.zeros(1, 8, 4, 4), torch.zeros(1, 3, 4, 4)])


def test_a_process_that_ends_by_itself_is_an_error(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no memory >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(check.sys, "executable", str(python))
    with pytest.raises(ValueError, match=r"no memory \(status 3\)"):
        run_alone("torchscript", tmp_path / "network.pt", [])


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
    assert largest_difference([actual], [expected]) == pytest.approx(difference)


def test_the_worst_input_counts():
    expected = [one(1.0), one(2.0), one(3.0)]
    assert largest_difference([one(1.0), one(3.0), one(3.0)], expected) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("actual", "expected", "said"),
    [
        (one(1.0), (*one(1.0), *one(2.0)), r"gives \[\(1,\)\] where the model gives \[\(1,\), \(1,\)\]"),
        (one(1.0, 2.0), one(1.0), r"gives \[\(2,\)\] where the model gives \[\(1,\)\]"),
        (one(1.0), one(math.inf), "own output for random pictures is not finite"),
    ],
)
def test_what_cannot_be_compared_is_said(actual, expected, said):
    with pytest.raises(ValueError, match=said):
        largest_difference([actual], [expected])
