"""Covariances and the spread of their eigenvalues, where they are known."""
import copy
import math

import pytest
import torch
from torch import nn

from ce_mm.analysis.spectrum import Covariance, covariances, eigenvalues, spread
from ce_mm.layers import CENorm
from ce_mm.ops import RELU


def positions(maps):
    return maps.double().movedim(1, 0).flatten(1)


def expected(maps, group_size):
    return torch.stack([torch.cov(group, correction=0) for group in positions(maps).split(group_size)])


def test_batches_join_to_the_covariance_of_all_positions():
    torch.manual_seed(0)
    batches = [torch.randn(n, 8, h, 3) * 2 + mean for n, h, mean in ((4, 5, 0), (0, 5, 0), (1, 5, 30), (3, 5, -1))]
    covariance = Covariance(4)
    for batch in batches:
        covariance.add(batch)
    torch.testing.assert_close(covariance.matrices(), expected(torch.cat(batches), 4), rtol=1e-5, atol=1e-4)


def test_the_spread_is_0_for_equal_and_largest_for_identical_channels():
    assert spread(eigenvalues(3 * torch.eye(4).expand(2, 4, 4))) == 0
    assert spread(eigenvalues(torch.ones(1, 4, 4, dtype=torch.float64))) == pytest.approx(math.sqrt(3))
    assert spread(torch.tensor([[1.0, 3.0], [2.0, 2.0]])) == 0.25
    assert spread(torch.zeros(1, 4)) == 0


def whitened_layer(x, group_size=4):
    """A layer whose batch decorrelation whitens the base norm's output exactly, over these maps."""
    layer = CENorm(8, group_size=group_size, branches=("bd",)).eval()
    layer.norm.weight.data.uniform_(0.5, 2)
    values, vectors = torch.linalg.eigh(expected(layer.norm(x).detach(), group_size))
    layer.bd.running_whitening.copy_(vectors @ torch.diag_embed(values.rsqrt()) @ vectors.mT)
    return layer


class Block(nn.Module):
    """CE with residual add and ReLU in its last pass."""

    def __init__(self, layer):
        super().__init__()
        self.ce = layer

    def forward(self, x):
        return self.ce(x, residual=x, rectifier=RELU)


def test_behind_an_exact_whitening_there_is_no_spread_and_before_it_that_of_the_base_norm():
    torch.manual_seed(0)
    x = torch.randn(6, 8, 5, 5) + torch.randn(6, 1, 5, 5)
    layer = whitened_layer(x)
    model = Block(layer)
    before, after = covariances(model, [lambda: model(x[:2]), lambda: model(x[2:])])["ce"]
    torch.testing.assert_close(before, expected(layer.norm(x).detach(), 4), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after, torch.eye(4, dtype=torch.float64).expand(2, 4, 4), rtol=0, atol=1e-4)
    assert spread(eigenvalues(before)) > 0.5
    assert spread(eigenvalues(after)) < 1e-4


def test_a_layer_whose_branches_are_none_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(CENorm(8, branches=())).eval()
    x = torch.randn(4, 8, 3, 3)
    before, after = covariances(model, [lambda: model(x)], group_size=4)["0"]
    assert before.shape == (2, 4, 4)
    assert torch.equal(before, after)


def test_norms_without_ce_are_measured_in_groups_that_fit():
    model = nn.Sequential(nn.Conv2d(3, 20, 1), nn.BatchNorm2d(20)).eval()
    x = torch.randn(2, 3, 4, 4)
    before, after = covariances(model, [lambda: model(x)])["1"]
    assert before.shape == (5, 4, 4) and after is None
    torch.testing.assert_close(before, expected(model(x).detach(), 4), rtol=1e-4, atol=1e-6)


def test_a_norm_that_is_called_for_several_maps_counts_over_all_of_them():
    norm = nn.BatchNorm2d(4).eval()
    levels = [torch.randn(2, 4, side, side) for side in (4, 2)]
    found = covariances(norm, [lambda: [norm(level) for level in levels]])
    both = torch.cat([positions(norm(level).detach()) for level in levels], 1)
    torch.testing.assert_close(found[""].before[0], torch.cov(both, correction=0), rtol=1e-4, atol=1e-6)


def test_measuring_leaves_the_network_as_it_was():
    model = Block(CENorm(8)).eval()
    state = copy.deepcopy(model.state_dict())
    covariances(model, [lambda: model(torch.randn(2, 8, 3, 3))])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("model", [nn.Sequential(CENorm(8)), nn.Sequential(nn.BatchNorm2d(8))])
def test_a_network_in_training_mode_is_refused(model):
    with pytest.raises(ValueError, match=r"^0 is in training mode; expected a network in eval mode"):
        covariances(model, [])
