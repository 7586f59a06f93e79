"""torch.compile and torch.export see a network with CE whole, and change no number."""
import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.model import Sequential

from ce_mm.backbones import CEResNet, equalize_conv_module


class ConvModules(Sequential):
    """Two of mmcv's, with CE and a ReLU6; a tuple of one map, as a backbone gives it."""

    def __init__(self):
        parts = dict(norm_cfg=dict(type="BN"), act_cfg=dict(type="ReLU6"))
        super().__init__(ConvModule(3, 16, 3, **parts), ConvModule(16, 16, 3, **parts))
        for module in self:
            equalize_conv_module(module, {})

    def forward(self, x):
        return (super().forward(x),)


NETWORKS = {"resnet": lambda: CEResNet(18, base_channels=16, stem_channels=16), "conv-modules": ConvModules}


def network(name="resnet"):
    torch.manual_seed(0)
    model = NETWORKS[name]()
    model.init_weights()
    return model


def losses(model, forward, steps=4):
    """The loss curve of a few steps of SGD on fixed pictures."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(next(model.parameters()).dtype)
    curve = []
    for _ in range(steps):
        loss = (forward(x)[0].mean((2, 3)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


@pytest.fixture
def compiled():
    """The compiler's front and autograd's graph, without code generation, which needs a C++ compiler."""
    torch.compiler.reset()
    yield lambda model: torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.compiler.reset()


# In float32 the compiler joins the small calls of the coefficients by itself, where eager mode has a kernel for them:
# equal up to rounding, which four steps make a thousand times as large, as they do with the last bit of a weight.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-3)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiled_network_trains_with_the_same_loss_curve(compiled, name, dtype, tolerance):
    model = network(name).to(dtype)
    twin = copy.deepcopy(model)
    eager = losses(model, model)
    assert eager[-1] < eager[0]
    close = dict(rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(losses(twin, compiled(twin)), eager, **close)
    torch.testing.assert_close(dict(twin.named_buffers()), dict(model.named_buffers()), **close)


def test_a_compiled_network_trains_under_autocast(compiled):
    def gradients(model, forward):
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)))[0].square().mean()
        loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    model = network("conv-modules")
    twin = copy.deepcopy(model)
    mine, theirs = gradients(twin, compiled(twin)), gradients(model, model)
    assert (mine - theirs).norm() <= 0.02 * theirs.norm()


def test_a_compiled_network_infers_the_same(compiled):
    model, x = network(), torch.randn(2, 3, 32, 32)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(x), model(x))


def test_an_exported_network_gives_the_same_at_another_batch_size():
    model = network()
    model.eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: batch},))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("ce_mm.group_affine.default") == 7
    x = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(program.module()(x), model(x))
