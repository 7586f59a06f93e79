"""The layers in the hands of mmengine's and mmcv's tools: built by a name, replaced, initialised, decayed."""
import copy

import pytest
import torch
from torch import nn

from ce_mm.layers import CENorm, SwitchableNorm

pytest.importorskip("mmengine", exc_type=ImportError)
cnn = pytest.importorskip("mmcv.cnn", exc_type=ImportError)
model = pytest.importorskip("mmengine.model", exc_type=ImportError)
optim = pytest.importorskip("mmengine.optim", exc_type=ImportError)


def test_mmcv_builds_ce_by_its_name_and_calls_it_bn():
    cfg = dict(type="CE", norm=dict(type="BN", eps=1e-3), requires_grad=False)
    name, ce = cnn.build_norm_layer(cfg, 16, postfix=2)
    assert (name, type(ce), ce.norm.eps) == ("bn2", CENorm, 1e-3)
    assert not any(p.requires_grad for p in ce.parameters())


def test_mmcv_builds_sn_by_its_name_and_calls_it_bn():
    name, sn = cnn.build_norm_layer(dict(type="SN", momentum=0.2, requires_grad=False), 6, postfix=2)
    assert (name, type(sn), sn.momentum) == ("bn2", SwitchableNorm, 0.2)
    assert not any(p.requires_grad for p in sn.parameters())


def test_tools_that_replace_batch_norms_keep_ce():
    module = nn.Sequential(cnn.ConvModule(3, 16, 3, norm_cfg=dict(type="CE")))
    x = torch.randn(2, 3, 9, 9)
    expected = module.eval()(x)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(module))
    assert isinstance(synced[0].norm, CENorm)
    assert isinstance(synced[0].norm.norm, nn.SyncBatchNorm)
    reverted = model.revert_sync_batchnorm(synced)
    assert isinstance(reverted[0].norm, CENorm)
    fused = cnn.fuse_conv_bn(copy.deepcopy(module))
    for same in (reverted, fused):
        torch.testing.assert_close(same.eval()(x), expected)
    reverted.train()(x)


@pytest.mark.parametrize("norm", [dict(type="GN", num_groups=2), *(dict(type=t) for t in ("IN", "LN", "SN"))], ids=str)
def test_tools_that_replace_batch_norms_leave_other_base_norms_alone(norm):
    ce = CENorm(16, norm=norm)
    kind = type(ce.norm)
    assert type(model.revert_sync_batchnorm(nn.SyncBatchNorm.convert_sync_batchnorm(ce)).norm) is kind


def test_tools_that_replace_batch_norms_leave_sn_alone():
    network = nn.Sequential(nn.Conv2d(3, 6, 1), SwitchableNorm(6))
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(network)[1], SwitchableNorm)
    assert isinstance(cnn.fuse_conv_bn(network)[1], SwitchableNorm)


def test_batch_norm_may_become_sync_bn_and_a_plain_batch_norm_again():
    ce, x = CENorm(16), torch.randn(3, 16, 6, 5)
    nn.init.normal_(ce.weight)
    expected = copy.deepcopy(ce)(x)
    reverted = model.revert_sync_batchnorm(nn.SyncBatchNorm.convert_sync_batchnorm(ce))
    torch.testing.assert_close(reverted(x), expected)


@pytest.mark.parametrize(
    "init_cfg",
    [
        dict(type="Constant", val=0, override=dict(name="norm3")),  # mmdet's zero_init_residual
        dict(type="Normal", layer="Linear", std=0.01),
        dict(type="Constant", layer=["Linear", "LayerNorm"], val=3, bias=3),
        [dict(type=kind, layer="Linear") for kind in ("Xavier", "Kaiming", "TruncNormal", "Uniform", "Caffe2Xavier")],
    ],
    ids=str,
)
def test_initialisers_of_the_network_s_layers_leave_the_inside_of_ce_alone(init_cfg):
    network = nn.Sequential()
    network.norm3 = ce = CENorm(16)
    before = copy.deepcopy(ce.ir.state_dict())
    model.initialize(network, init_cfg)
    torch.testing.assert_close(ce.ir.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(ce.weight, torch.full((16,), 0.0 if "override" in init_cfg else 1.0))


def test_initialisers_of_norms_reach_the_base_norm():
    for norm in (dict(type="BN"), dict(type="GN", num_groups=2)):
        network = nn.Sequential(CENorm(16, norm=norm))
        model.initialize(network, dict(type="Constant", layer=["_BatchNorm", "GroupNorm"], val=0.5))
        assert torch.equal(network[0].norm.weight, torch.full((16,), 0.5))


def test_sn_has_the_weight_decay_of_norms():
    optimizer = dict(type="SGD", lr=0.1, weight_decay=0.5)
    cfg = dict(type="OptimWrapper", optimizer=optimizer, paramwise_cfg=dict(norm_decay_mult=0))
    groups = optim.build_optim_wrapper(nn.Sequential(SwitchableNorm(6)), cfg).optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0, 0, 0, 0]
