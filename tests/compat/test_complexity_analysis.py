"""mmengine's counter of operations, with CE in the network."""
import torch
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info
from mmpretrain.models.backbones import ResNet

from ce_mm.backbones import CEResNet
from ce_mm.layers import CENorm
from tools.evidence.complexity.counting import complexity

SHAPE = (3, 64, 64)


def test_the_passes_of_a_layer_are_those_of_our_own_count():
    ce = CENorm(32).eval()
    counts = FlopAnalyzer(ce, (torch.randn(1, 32, 6, 5),)).by_operator()
    ours = complexity(ce, (32, 6, 5))
    assert (counts["moments"], counts["group_affine"]) == (ours.moments, ours.affine)


def test_a_network_with_ce_costs_more_than_the_plain_one():
    models = ResNet(18), CEResNet(18)
    for model in models:
        model.eval()
    plain, equalised = (get_model_complexity_info(model, SHAPE)["flops"] for model in models)
    assert equalised > plain
