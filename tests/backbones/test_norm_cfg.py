"""The libraries' own networks with ``norm_cfg=dict(type='CE')``."""
import torch
from mmdet.models.backbones import ResNet

from ce_mm.layers import CENorm


def test_mmdet_s_zero_init_residual_sets_the_base_norm_s_gamma_to_zero_and_nothing_else_of_ce():
    model = ResNet(18, norm_cfg=dict(type="CE"))
    model.init_weights()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, CENorm)}
    for name, ce in layers.items():
        assert torch.equal(ce.weight, torch.full_like(ce.weight, 0 if name.endswith("bn2") else 1))
        assert torch.equal(ce.ir.ln.weight, torch.ones_like(ce.ir.ln.weight))
        assert ce.ir.fc1.weight.std() > 0 and ce.ir.fc2.weight.std() > 0
    assert len(layers) == 20
