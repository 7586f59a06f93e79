import pytest
import torch
from torch import nn

from ce_mm.hooks.kept_averages import KeptAverages

NAN = float("nan")


def moved_by(norm, x):
    norm(x)
    return averages(norm)


def averages(norm):
    return norm.running_mean.clone(), norm.running_var.clone()


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf"), 1e30], ids=str)
def test_a_norm_that_a_batch_spoilt_goes_back_as_a_whole_and_its_neighbours_do_not(value):
    norms = [nn.BatchNorm2d(3), nn.BatchNorm2d(2)]
    before = moved_by(norms[0], torch.randn(2, 3, 4, 4))
    kept = KeptAverages(norms)
    bad = torch.randn(2, 3, 4, 4)
    bad[0, 1, 2, 3] = value  # 1e30: the mean is finite, its square is not
    norms[0](bad)
    after = moved_by(norms[1], torch.randn(2, 2, 4, 4))
    assert kept.put_back().tolist() == [False, True]
    torch.testing.assert_close([averages(norm) for norm in norms], [before, after], rtol=0, atol=0)


def test_a_bad_batch_has_no_weight_in_a_cumulative_average():
    norm, without = nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, momentum=None)
    good = torch.randn(3, 2, 3, 4, 4)
    for x in (good[0] * NAN, good[0], good[1] * NAN, good[2]):
        kept = KeptAverages([norm])
        norm(x)
        kept.put_back()
    for x in (good[0], good[2]):
        without(x)
    torch.testing.assert_close(norm.state_dict(), without.state_dict(), rtol=0, atol=0)


def test_averages_in_half_precision_go_back():
    norm = nn.BatchNorm2d(3).half()
    kept = KeptAverages([norm])
    norm.running_var[1] = float("inf")
    assert kept.put_back().tolist() == [False]
    assert norm.running_var.dtype == torch.float16
    assert torch.equal(norm.running_var, torch.ones(3).half())
