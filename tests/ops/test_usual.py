"""The usual layer as one node gives what the operators give one by one, and leaves to them what is not usual."""
import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from ce_mm import ops
from ce_mm.layers import CENorm
from ce_mm.ops.backends import choose

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def with_a_chain(monkeypatch):
    """A backend that has a chain for the maps here."""
    pytest.importorskip("numba")
    monkeypatch.setenv("CE_MM_BACKEND", "numba")
    choose.cache_clear()
    yield
    choose.cache_clear()


def layer_of(**arguments):
    """A layer whose parameters and averages are away from where they start."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer = CENorm(32, **arguments)
    with torch.no_grad():
        for value in (*layer.parameters(), layer.norm.running_mean, layer.norm.running_var):
            value.add_(0.2 * torch.rand(value.shape, generator=generator))
    return layer


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_usual(layer, x=None, residual=None, learns=True):
    x = draw(2, 32, 3, 3) if x is None else x
    return ops.as_usual(x, residual, layer.base, layer.bd, layer.ir, layer.mix, layer.momentum, learns)


def step(layer, x, residual, rectifier):
    """What a training step makes, and changes."""
    x, residual = (value if value is None else value.clone().requires_grad_() for value in (x, residual))
    y = layer(x, residual, rectifier)
    y.backward(torch.ones_like(y) + y.detach())
    gradients = [value.grad for value in (x, residual, *layer.parameters()) if value is not None]
    return y, *gradients, *layer.buffers(), torch.tensor(layer.finite is None or bool(layer.finite))


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("rectifier", [None, ops.RELU, ops.RELU6])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_one_node_gives_what_the_operators_give(monkeypatch, learns, rectifier, with_residual, dtype, layout):
    layer = layer_of(correction=1)
    layer.norm.train(learns)
    x, residual = (draw(3, 32, 5, 7, seed=k).to(dtype).contiguous(memory_format=layout) for k in range(2))
    arguments = x, residual if with_residual else None, rectifier
    one, other = layer, copy.deepcopy(layer)
    mine = step(one, *arguments)
    monkeypatch.setattr(ops, "as_usual", lambda *_: None)
    for a, b in zip(mine, step(other, *arguments), strict=True):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        tolerance = 2e-2 if a.dtype == torch.bfloat16 else 1e-5 if dtype == torch.float32 else 1e-2
        assert (a.double() - b.double()).abs().max() <= tolerance * b.double().abs().max().clamp_min(1e-30)


def test_autograd_sees_one_node():
    layer, x = layer_of(), draw(2, 32, 3, 3).requires_grad_()
    nodes = {node.name() for node, _ in layer(x, x, ops.RELU).grad_fn.next_functions if node is not None}
    assert nodes == {"torch::autograd::AccumulateGrad"}


@pytest.mark.parametrize("wanted", ["x", "norm.weight", "ir.fc2.weight", "mix"])
def test_who_needs_no_gradient_gets_none(wanted):
    def gradients(needed):
        layer, x = layer_of(), draw(2, 32, 3, 3)
        tensors = dict(layer.named_parameters(), x=x)
        for name, tensor in tensors.items():
            tensor.requires_grad_(name in needed)
        layer(x, rectifier=ops.RELU).square().sum().backward()
        return {name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}

    alone = gradients([wanted])
    assert list(alone) == [wanted]
    assert torch.equal(alone[wanted], gradients(["x", *dict(layer_of().named_parameters())])[wanted])


def test_beta_may_change_before_the_backward_and_gamma_may_not():
    layer, x = layer_of(), draw(2, 32, 3, 3).requires_grad_()
    one, other = layer(x), layer(x)
    with torch.no_grad():
        layer.norm.bias.add_(1)
    one.sum().backward()
    with torch.no_grad():
        layer.norm.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.sum().backward()


def test_hooks_may_save_tensors_in_another_layout():
    """As one that keeps a constant as a single number, or a matrix by columns."""

    def otherwise(value):
        if value.numel() and (value == value.flatten()[0]).all():
            return value.flatten()[0].clone().expand(value.shape)
        return value.mT.contiguous().mT if value.dim() == 2 else value

    layer, x = layer_of(), draw(2, 32, 3, 3).requires_grad_()
    inputs = [x, *layer.parameters()]
    expected = torch.autograd.grad(layer(x, x, ops.RELU).square().sum(), inputs)
    with torch.autograd.graph.saved_tensors_hooks(otherwise, lambda value: value):
        loss = layer(x, x, ops.RELU).square().sum()
    for one, other in zip(torch.autograd.grad(loss, inputs), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_batch_that_is_recomputed_counts_as_often_as_it_moves_the_averages():
    layer, other, x = layer_of(), layer_of(), draw(2, 32, 3, 3).requires_grad_()
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    for _ in range(2):
        other(x)
    assert layer.norm.num_batches_tracked == 2
    assert all(map(torch.equal, layer.buffers(), other.buffers()))


def test_forward_mode_is_refused_and_no_tangent_lost():
    with torch.no_grad(), forward_ad.dual_level():
        weight = forward_ad.make_dual(torch.ones(32), torch.ones(32))
        with pytest.raises(NotImplementedError):
            torch.func.functional_call(layer_of(), {"norm.weight": weight}, (draw(2, 32, 3, 3),))


def test_it_can_be_differentiated_once():
    x = draw(2, 32, 3, 3).requires_grad_()
    y = layer_of()(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y).requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("channels", [1, 32])
def test_a_first_batch_far_from_zero_costs_no_precision_and_is_learnt_once(channels):
    x = draw(4, 32, 5, 7)
    x[:, -channels:] += 1000
    layer = layer_of()
    exact = copy.deepcopy(layer).double()
    mine, expected = step(layer, x, None, None), step(exact, x.double(), None, None)
    for one, other in zip(mine, expected, strict=True):
        assert (one.double() - other.double()).abs().max() <= 2e-5 * other.double().abs().max().clamp_min(1e-30)
    assert layer.norm.num_batches_tracked == 1


def test_written_over_x_where_that_is_permitted_and_no_gradient_wanted():
    layer, x = layer_of().eval(), draw(2, 32, 3, 3)
    expected = layer(x).detach()
    assert layer(x, overwrite=True).data_ptr() != x.data_ptr()
    with torch.no_grad():
        y = layer(x, overwrite=True)
    assert y.data_ptr() == x.data_ptr()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("learns", [True, False])
def test_parameters_need_not_be_dense(learns):
    def strided(value):
        return torch.stack([value] * 2, -1)[..., 0]

    layer, x = layer_of(), draw(2, 32, 3, 3)
    layer.norm.train(learns)
    other = copy.deepcopy(layer)
    for parameter in other.parameters():
        parameter.data = strided(parameter.data)
    if not learns:
        other.bd.running_whitening = strided(other.bd.running_whitening)
    assert as_usual(other, learns=learns) is not None
    assert all(map(torch.equal, step(other, x, None, ops.RELU), step(layer, x, None, ops.RELU)))


def test_averages_of_half_precision_serve_where_nothing_is_learnt():
    layer = layer_of().half()
    assert as_usual(layer, learns=True) is None
    usual = as_usual(layer, learns=False)
    assert {value.dtype for value in (*usual.parameters, *usual.averages)} == {torch.float32}


class Other(torch.Tensor):
    """A tensor that may be more than that."""


class Nothing(TorchDispatchMode):
    """A mode that does nothing but look on."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return operator(*args, **kwargs or {})


def change(layer, name, value):
    owner, _, name = name.rpartition(".")
    setattr(layer.get_submodule(owner), name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("norm.momentum", None),
        ("norm.momentum", torch.tensor(0.3)),
        ("norm.running_mean", torch.zeros(31)),
        ("norm.running_mean", torch.zeros(32, dtype=torch.float64)),
        ("norm.running_var", torch.ones(32, 2)[:, 0]),
        ("norm.weight", torch.nn.Parameter(torch.ones(16))),
        ("ir.fc1.weight", torch.nn.Parameter(torch.ones(8, 16))),
        ("ir.fc2.weight", torch.nn.Parameter(torch.ones(8, 32))),
        ("ir.running_inv_std_scale", torch.ones(1, device="meta")),
        ("bd.running_whitening", torch.ones(2, 16, 16, requires_grad=True)),
        ("mix", torch.nn.Parameter(torch.zeros(2))),
    ],
    ids=lambda value: value if isinstance(value, str) else str(getattr(value, "shape", "")),
)
def test_what_kernels_could_not_read_or_move_is_left_to_pytorch(name, value):
    layer = layer_of()
    assert as_usual(layer) is not None
    change(layer, name, value)
    assert as_usual(layer) is None


def test_who_looks_on_is_shown_the_operators():
    layer, x = layer_of(), draw(2, 32, 3, 3)
    with Nothing():
        assert as_usual(layer) is None
    assert as_usual(layer, x, residual=x.as_subclass(Other)) is None
    assert as_usual(layer, x.double()) is None  # for which no backend has a chain
    assert as_usual(layer, x[:0]) is None
