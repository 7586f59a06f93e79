"""CE as the norm of the libraries' own networks, and whatever norm the libraries know below the CE of ours."""
import pytest
import torch
from mmdet.models.backbones import ResNet
from mmengine.registry import MODELS
from torch import nn

from ce_mm.backbones import CEResNet
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


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class OwnNorm(nn.BatchNorm2d):
    """In no registry but mmengine's, under a name of its user's."""


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("where", ["norm_cfg", "ce_cfg", "ce_stem_cfg"])
@pytest.mark.parametrize("name", ["MMSyncBN", "OwnNorm"])
def test_a_base_norm_may_have_any_name_in_mmengine_s_registry(name, where, monkeypatch):
    monkeypatch.setitem(MODELS.module_dict, "OwnNorm", OwnNorm)
    norm = dict(type=name, eps=1e-3)
    model = CEResNet(18, **{where: norm if where == "norm_cfg" else dict(norm=norm)})
    base = (model.layer1[0].bn2 if where == "ce_cfg" else model.bn1).norm
    assert type(base) is MODELS.get(name) and base.eps == 1e-3
