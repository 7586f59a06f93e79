"""Magnitudes and the ratio of inhibited channels, exact on networks where they are known."""
import math

import pytest
import torch
from torch import nn

from ce_mm.analysis.channels import (
    EDGES,
    channel_magnitudes,
    check_threshold,
    histogram,
    inhibited_ratios,
    mean_of_first,
)
from ce_mm.layers import CENorm
from ce_mm.ops import RELU


def magnitudes(model, *batches):
    return channel_magnitudes(model, [lambda x=x: model(x) for x in batches])


def norm_and_relu(gamma, beta, rectifier=None):
    """In eval mode, with running mean 0 and variance 1 - ε: γ x + β, rectified."""
    norm = nn.BatchNorm2d(len(gamma)).eval()
    with torch.no_grad():
        norm.running_var.fill_(1 - norm.eps)
        norm.weight.copy_(torch.tensor(gamma))
        norm.bias.copy_(torch.tensor(beta))
    return nn.Sequential(norm, rectifier or nn.ReLU()).eval()


def test_magnitudes_follow_gamma_and_beta():
    model = norm_and_relu([0.0, 0.0, 2.0, -2.0], [3.0, -3.0, 0.0, 0.0])
    x = torch.tensor([1.0, -1.0, 5.0, -5.0]).view(1, 1, 2, 2).expand(1, 4, 2, 2)
    assert magnitudes(model, x)["1"].tolist() == pytest.approx([3, 0, 3, 3])


@pytest.mark.parametrize(("rectifier", "expected"), [(nn.LeakyReLU(0.5), 0.75), (nn.ELU(), (1 + 1 - math.exp(-1)) / 2)])
def test_what_other_rectifiers_let_through_of_negative_values_counts_by_its_size(rectifier, expected):
    model = norm_and_relu([1.0], [0.0], rectifier)
    assert magnitudes(model, torch.tensor([1.0, -1.0]).view(1, 1, 1, 2))["1"].item() == pytest.approx(expected)


def test_channels_zeroed_by_hand_are_the_inhibited_ones():
    torch.manual_seed(0)
    first, second = nn.BatchNorm2d(8), nn.BatchNorm2d(4)
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, 4, 1), second, nn.ReLU())
    for norm, dead in ((first, [1, 4, 6]), (second, [0])):
        with torch.no_grad():
            norm.weight[dead] = norm.bias[dead] = 0
    found = magnitudes(model, torch.randn(4, 8, 6, 6))
    assert inhibited_ratios(found, 0.01) == {"1": 3 / 8, "4": 1 / 4}
    assert (found["1"] == 0).nonzero().flatten().tolist() == [1, 4, 6]


def test_folded_and_separate_rectifiers_give_the_same_magnitudes():
    torch.manual_seed(0)

    class Folded(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            return self.norm(x, rectifier=RELU)

    norm, x = CENorm(32).eval(), torch.randn(3, 32, 5, 5)
    norm.norm.bias.data.uniform_(-2, 1)
    folded, separate = magnitudes(Folded(norm), x)["norm"], magnitudes(nn.Sequential(norm, nn.ReLU()), x)["1"]
    torch.testing.assert_close(folded, separate)
    ratios = inhibited_ratios(dict(folded=folded, separate=separate), 0.2)
    assert 0 < ratios["folded"] == ratios["separate"] < 1


def test_maps_count_by_samples_and_positions():
    model = nn.Sequential(nn.ReLU())
    found = magnitudes(model, torch.full((3, 1, 2, 2), 1.0), torch.zeros(0, 1, 2, 2), torch.full((1, 1, 2, 4), 6.0))
    assert found["0"].item() == (12 * 1 + 8 * 6) / 20


def test_a_place_that_saw_empty_maps_alone_was_not_measured():
    with pytest.raises(ValueError, match="this network has no rectified map to measure"):
        magnitudes(nn.Sequential(nn.ReLU()), torch.zeros(0, 1, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sums_over_large_maps_are_taken_in_float32_at_least(dtype):
    found = magnitudes(nn.Sequential(nn.ReLU()), torch.full((2, 1, 300, 300), 3.0, dtype=dtype))
    assert found["0"].dtype == torch.float64
    assert found["0"].item() == pytest.approx(3, rel=1e-6)


def test_a_channel_at_the_threshold_is_not_inhibited():
    found = dict(layer=torch.tensor([0.0, 0.25, 0.5, 1.0]))
    assert inhibited_ratios(found, 0.5) == dict(layer=0.5)
    assert inhibited_ratios(found, 0.0) == dict(layer=0)


@pytest.mark.parametrize("threshold", [-0.01, math.nan])
def test_a_threshold_below_0_is_refused(threshold):
    with pytest.raises(ValueError, match="at least 0, got"):
        check_threshold(threshold)


def test_the_mean_counts_every_layer_once_and_the_first_alone():
    ratios = dict(a=0.5, b=0.25, c=0.0, d=1.0)
    assert mean_of_first(ratios, 3) == 0.25
    assert mean_of_first(ratios, 9) == 1.75 / 4


def test_a_histogram_counts_every_channel_once():
    values = [0.0, EDGES[1] / 2, EDGES[1], EDGES[2] * 0.99, EDGES[-1], 1e9]
    counts = histogram(torch.tensor(values, dtype=torch.float64))
    assert counts == [2, 2, *[0] * (len(EDGES) - 3), 2]
    values = torch.rand(100, dtype=torch.float64) * 200
    assert sum(histogram(values)) == 100 and len(histogram(values)) == len(EDGES)
