"""Ablation on networks whose loss is known: the figure is the sum of what the channels still give."""
from itertools import pairwise

import pytest
import torch
from torch import nn

from ce_mm.analysis.ablation import RATIOS, at_random, smallest_first, with_zeroed
from ce_mm.analysis.channels import channel_magnitudes
from ce_mm.layers import CENorm
from ce_mm.ops import RELU

VALUES = torch.tensor([8.0, 1.0, 4.0, 2.0])


class Ones(nn.Module):
    """Gives each of four channels its own power of two, so that a sum tells which of them are there."""

    def __init__(self, folded=False):
        super().__init__()
        self.norm, self.relu, self.folded = CENorm(4, branches=()).eval(), nn.ReLU(), folded
        self.norm.norm.weight.data.zero_()
        self.norm.norm.bias.data.copy_(VALUES)

    def forward(self, x):
        return self.norm(x, rectifier=RELU) if self.folded else self.relu(self.norm(x))


@pytest.fixture(params=[False, True], ids=["separate", "folded"])
def network(request):
    return Ones(request.param)


def place(model):
    return "norm" if model.folded else "relu"


def figure_of(model):
    return lambda: model(torch.zeros(1, 4, 1, 1)).sum().item()


def test_channels_set_to_zero_give_nothing_and_come_back(network):
    zeroed = {place(network): torch.tensor([True, False, False, True])}
    assert with_zeroed(network, zeroed, figure_of(network)) == 1 + 4
    assert figure_of(network)() == 15


def test_the_least_magnitudes_go_first(network):
    magnitudes = channel_magnitudes(network, [figure_of(network)])
    assert smallest_first(network, magnitudes, figure_of(network), [0, 0.25, 0.5, 0.75, 1]) == [15, 14, 12, 8, 0]


def test_the_part_is_taken_of_every_layer_and_of_no_other():
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False), nn.ReLU(), nn.Identity(), nn.ReLU())
    nn.init.ones_(model[1].weight)
    x = VALUES[None, :, None, None]

    def figure():
        return model(x).sum().item()

    magnitudes = channel_magnitudes(model, [figure])
    assert list(magnitudes) == ["0", "2", "4"]
    del magnitudes["4"]
    assert smallest_first(model, magnitudes, figure, [0, 0.5]) == [30, 12]


def test_random_orders_are_those_of_their_seeds(network):
    magnitudes = {place(network): VALUES}
    runs = at_random(network, magnitudes, figure_of(network), RATIOS, runs=5)
    assert runs == at_random(network, magnitudes, figure_of(network), RATIOS, runs=5)
    assert len(runs) == 5 and len({tuple(run) for run in runs}) > 1
    for run in runs:
        assert run[0] == 15
        removed = [int(15 - figure) for figure in run]
        assert [bin(bits).count("1") for bits in removed] == [round(4 * ratio) for ratio in RATIOS]
        assert all(before & after == before for before, after in pairwise(removed))


def test_a_place_that_the_network_does_not_come_by_is_named(network):
    with pytest.raises(ValueError, match="this network did not come by the places layer9"):
        with_zeroed(network, {"layer9": torch.ones(4, dtype=torch.bool)}, figure_of(network))
