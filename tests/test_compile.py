"""torch.compile and torch.export see a network with CE whole, and change no number."""
import copy

import pytest
import torch

from ce_mm.backbones import CEResNet


def network():
    torch.manual_seed(0)
    model = CEResNet(18, base_channels=16, stem_channels=16)
    model.init_weights()
    return model


def losses(model, forward, steps=4):
    """The loss curve of a few steps of SGD on fixed pictures."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
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


def test_a_compiled_network_trains_with_the_same_loss_curve(compiled):
    model = network()
    twin = copy.deepcopy(model)
    eager = losses(model, model)
    assert eager[-1] < eager[0]
    torch.testing.assert_close(losses(twin, compiled(twin)), eager, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dict(twin.named_buffers()), dict(model.named_buffers()), rtol=1e-4, atol=1e-5)


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
