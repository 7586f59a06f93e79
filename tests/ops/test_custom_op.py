"""An operator takes maps, and is the same function in eager PyTorch and for whoever must see it whole."""
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ce_mm import ops
from ce_mm.ops.custom_op import operator

X = torch.randn(3, 8, 4, 5)
COEFFICIENTS = torch.zeros(8), None, torch.ones(3, 8), torch.zeros(3, 8)


@operator("ce_mm_test::scaled")
def scaled(x: torch.Tensor, factor: int, offset: torch.Tensor | None) -> torch.Tensor:
    """factor x + offset, by way of a look at the data, which no tracer could follow."""
    y = x * factor if x.sum() > 0 else factor * x
    return y if offset is None else y + offset


@scaled.register_fake
def _(x, factor, offset):
    return torch.empty_like(x)


def setup_context(ctx, inputs, output):
    ctx.factor = inputs[1]


scaled.register_autograd(lambda ctx, dy: (dy * ctx.factor, None, None), setup_context=setup_context)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._opname)
        return func(*args, **kwargs or {})


def test_eager_pytorch_gets_the_kernel_and_its_backward():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = scaled(x, 3, torch.ones(2))
    assert y.tolist() == [4, 7]
    assert torch.autograd.grad(y, x, torch.tensor([1.0, 10.0]))[0].tolist() == [3, 30]
    with torch.no_grad():
        assert scaled(x, 3, None).tolist() == [3, 6]


def test_a_mode_sees_one_operator_with_the_same_result_and_gradient():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with Seen() as seen:
        y = scaled(x, 3, None)
    assert seen.names == ["scaled"]
    torch.testing.assert_close(y, scaled(x, 3, None))
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [3, 3]


def test_a_compiler_sees_one_operator():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: scaled(x, 3, None), backend=backend, fullgraph=True)
    assert compiled(torch.ones(2)).tolist() == [3, 3]
    calls = [node.target for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert calls == [torch.ops.ce_mm_test.scaled.default]


@pytest.mark.parametrize("place", ["fake", "meta"])
def test_tensors_without_values_get_a_shape(place):
    if place == "meta":
        y = scaled(torch.empty(2, 3, device="meta"), 3, None)
    else:
        with FakeTensorMode() as mode:
            x = mode.from_tensor(torch.ones(2, 3))
        y = scaled(x, 3, None)  # outside of the mode: its tensors are told by their class
    assert y.shape == (2, 3)


def test_a_second_derivative_is_refused():
    x = torch.ones(2, requires_grad=True)
    first = torch.autograd.grad(scaled(x, 3, None).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_the_operator_passes_opcheck():
    torch.library.opcheck(torch.ops.ce_mm_test.scaled.default, (torch.ones(2, requires_grad=True), 3, None))


def test_the_passes_take_maps_alone():
    for x in (X[0], X.flatten(2)):
        with pytest.raises(ValueError, match=r"moments takes a map of shape \(N, C, H, W\), got"):
            ops.moments(x, 4)
        with pytest.raises(ValueError, match=r"group_affine takes a map of shape \(N, C, H, W\), got"):
            ops.group_affine(x, *COEFFICIENTS)


def test_whole_and_complex_numbers_are_no_map():
    for dtype in (torch.int32, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=f"takes a map of a floating type, got {dtype}"):
            ops.moments(X.to(dtype), 4)


def test_a_residual_has_the_map_s_shape():
    with pytest.raises(ValueError, match=r"adds a residual of .* \(3, 8, 4, 5\) on cpu, got \(3, 8, 5, 4\)"):
        ops.group_affine(X, *COEFFICIENTS, residual=X.mT)


@pytest.mark.parametrize("group_size", [0, -4, 3, 16])
def test_a_group_size_divides_the_channels(group_size):
    with pytest.raises(ValueError, match=f"group_size must divide the 8 channels, got {group_size}"):
        ops.moments(X, group_size)
