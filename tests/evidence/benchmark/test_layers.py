"""The layers that CE is measured against compute what they say."""
import pytest
import torch
from mmpretrain.models.utils import SELayer
from torch import nn

from ce_mm.ops.reference import Averages, Gate, equilibrium
from tools.evidence.benchmark.layers import VARIANTS, BatchNormReLU, FusedCE, IterNorm, LiteralCE, SqueezeExcite
from tools.evidence.benchmark.resnet import resnet50


def random_map(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def mixed_map(n=8, c=32, side=12):
    """Channels that depend on each other, each with a mean and a scale of its own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, c, side, side, dtype=torch.float64, generator=generator)
    mixing = torch.eye(c, dtype=torch.float64) + 0.1 * torch.randn(c, c, dtype=torch.float64, generator=generator)
    return torch.einsum("ij,njhw->nihw", mixing, x) + torch.arange(c)[:, None, None]


def shaken(module):
    """The module in float64, with parameters away from where they start."""
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module


def group_covariance(y, g=16):
    groups = y.transpose(0, 1).reshape(-1, g, y[:, 0].numel())
    return torch.stack([torch.cov(group, correction=0) for group in groups])


def test_iternorm_whitens_every_group_after_many_steps(monkeypatch):
    monkeypatch.setattr("tools.evidence.benchmark.layers._finish", lambda y, residual: y)
    layer, x = IterNorm(32, iterations=10).double(), mixed_map()  # beyond 20, rounding errors grow
    y = layer(x)
    torch.testing.assert_close(group_covariance(y), torch.eye(16).double().repeat(2, 1, 1), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.mean(dim=(0, 2, 3)), torch.zeros(32).double())


def test_iternorm_learns_its_inference_statistics(monkeypatch):
    monkeypatch.setattr("tools.evidence.benchmark.layers._finish", lambda y, residual: y)
    layer, x = IterNorm(32).double(), mixed_map()
    for _ in range(200):
        y = layer(x)
    torch.testing.assert_close(layer.eval()(x), y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_literal_ce_equals_the_paper_s_equations_on_what_batch_norm_gives(training):
    layer = shaken(LiteralCE(32)).train(training)
    norm = shaken(nn.BatchNorm2d(32)).train(training)
    norm.load_state_dict(layer.norm.state_dict())
    gate = Gate(layer.fc1.weight, layer.ln.weight, layer.ln.bias, layer.fc2.weight)
    running = None if training else Averages(layer.running_whitening, layer.running_inv_std_scale)
    expected, _ = equilibrium(norm(mixed_map()), gate, layer.mix, running=running)
    torch.testing.assert_close(layer(mixed_map()), expected.relu())


def test_our_ce_and_the_literal_one_are_the_same_layer():
    ours, literal, x = FusedCE(32).double(), shaken(LiteralCE(32)), mixed_map()
    ce = ours.ce
    pairs = {
        ce.norm.weight: literal.norm.weight, ce.norm.bias: literal.norm.bias, ce.mix: literal.mix,
        ce.ir.fc1.weight: literal.fc1.weight, ce.ir.ln.weight: literal.ln.weight, ce.ir.ln.bias: literal.ln.bias,
        ce.ir.fc2.weight: literal.fc2.weight,
    }  # fmt: skip
    for mine, its in pairs.items():
        mine.data.copy_(its.data)
    residual = torch.ones_like(x)
    torch.testing.assert_close(ours(x, residual), literal(x, residual))


def test_squeeze_excite_is_mmpretrain_s_layer_between_batch_norm_and_relu():
    layer, theirs, x = SqueezeExcite(256), SELayer(256), random_map(2, 256, 5, 5)
    for mine, its in ((layer.squeeze, theirs.conv1.conv), (layer.excite, theirs.conv2.conv)):
        its.load_state_dict(mine.state_dict())
    torch.testing.assert_close(layer(x), theirs(nn.BatchNorm2d(256)(x)).relu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_layer_keeps_type_and_layout_adds_the_residual_and_rectifies(name, layout, dtype):
    x = (10 + random_map(4, 32, 6, 5)).to(dtype, memory_format=layout)
    before, layer = x.clone(), VARIANTS[name](32)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y, lifted = layer(x), layer(x, torch.full_like(x, 100))
    assert (y.dtype, y.is_contiguous(memory_format=layout)) == (dtype, True)
    assert y.min() == 0
    assert lifted.min() > 50
    assert torch.equal(x, before)


def test_the_plain_resnet50_has_the_parameters_and_the_shapes_of_resnet50():
    network = resnet50(BatchNormReLU, stem=True, stages=(True,) * 4)
    assert sum(p.numel() for p in network.parameters()) == 25_557_032 - 1000 * 2049
    assert network(random_map(2, 3, 64, 64)).shape == (2, 2048, 2, 2)


def test_the_chosen_layer_stands_where_it_is_asked_for():
    network = resnet50(LiteralCE, stem=True, stages=(True, False, True, False))
    channels = [module.norm.num_features for module in network.modules() if isinstance(module, LiteralCE)]
    assert channels == [64, *[256] * 3, *[1024] * 6]
