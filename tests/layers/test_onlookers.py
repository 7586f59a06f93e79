"""What torch.fx sees of a network with layers of this package."""
import copy

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

from ce_mm.layers import CENorm, FoldedCE, SwitchableNorm, fold
from ce_mm.ops import RELU


class Block(nn.Module):
    def __init__(self, norm, **kwargs):
        super().__init__()
        self.conv, self.norm, self.kwargs = nn.Conv2d(4, 16, 1), norm, kwargs

    def forward(self, x):
        return self.norm(self.conv(x), **self.kwargs)


@pytest.mark.parametrize("relu", [dict(), dict(rectifier=RELU), dict(rectifier=0.5, overwrite=True)], ids=str)
@pytest.mark.parametrize("layer", [CENorm(16), CENorm(16, branches=()), fold(CENorm(16))], ids=repr)
def test_a_layer_is_one_call_of_a_traced_network(layer, relu):
    block, x = Block(copy.deepcopy(layer), **relu), torch.randn(2, 4, 5, 6)
    traced = symbolic_trace(block)
    assert [str(node.target) for node in traced.graph.nodes] == ["x", "conv", "norm", "output"]
    torch.testing.assert_close(traced(x), block(x))
    assert "overwrite" not in traced.code  # another node of the graph may need the map


def test_a_switchable_norm_is_one_call_of_a_traced_network():
    block, x = Block(SwitchableNorm(16)), torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(symbolic_trace(block)(x), block(x))


def test_a_traced_network_may_be_folded():
    traced = symbolic_trace(Block(CENorm(16)))
    folded = fold(traced)
    assert type(folded.norm) is FoldedCE
    x = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(folded(x), traced.eval()(x))
