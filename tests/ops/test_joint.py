"""Moments and group affine as one: a layer whose coefficients depend on its own moments."""
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ce_mm import ops

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def coefficients(means, second):
    """Any smooth function of the moments will do."""
    mean, variance = means
    diagonal = torch.sin(variance + mean)
    return torch.tanh(second) + second.square(), diagonal, mean * diagonal


def by_operators(x, residual, rectifier, linked=True):
    moments = ops.moments(x, 4, shift=torch.linspace(-1, 1, 8, dtype=x.dtype))
    weight, diagonal, bias = coefficients(*moments[1:3])
    link = moments.link if linked else None
    return ops.group_affine(x, moments.shift, weight, diagonal, bias, residual, rectifier, link)


def by_formula(x, residual, rectifier):
    z = (x - torch.linspace(-1, 1, 8, dtype=x.dtype)[:, None, None]).flatten(2)
    groups = z.unflatten(1, (2, 4))
    second = (groups @ groups.mT / z.shape[-1]).mean(0, keepdim=True)
    weight, diagonal, bias = coefficients((z.mean(-1), z.var(-1, correction=0)), second)
    y = ((weight @ groups).flatten(1, 2) + diagonal[..., None] * z + bias[..., None]).view_as(x)
    y = y if residual is None else y + residual
    return y if rectifier is None else y.clamp(0, rectifier)


@pytest.mark.parametrize("rectifier", [None, ops.RELU, 0.5])
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_joint_gradient_is_that_of_the_formula(layout, has_residual, rectifier):
    x = draw(3, 8, 4, 5).contiguous(memory_format=layout).requires_grad_()
    residual = draw(3, 8, 4, 5, seed=1).requires_grad_() if has_residual else None
    inputs = [x, residual] if has_residual else [x]
    dy = draw(3, 8, 4, 5, seed=2)
    expected = by_formula(x, residual, rectifier)
    for linked in (True, False):
        y = by_operators(x, residual, rectifier, linked)
        torch.testing.assert_close(y, expected)
        mine = torch.autograd.grad(y, inputs, dy)
        theirs = torch.autograd.grad(expected, inputs, dy, retain_graph=True)
        torch.testing.assert_close(mine, theirs)


def test_the_joint_gradient_passes_gradcheck():
    inputs = [draw(2, 8, 2, 2).requires_grad_(), draw(2, 8, 2, 2, seed=1).requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, residual: by_operators(x, residual, ops.RELU), inputs)


def test_a_backward_is_two_passes_over_the_map():
    class Calls(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.count = Counter()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "ce_mm":
                self.count[func._opname] += 1
            return func(*args, **kwargs or {})

    x = draw(2, 8, 3, 3).requires_grad_()
    with Calls() as forward:
        y = by_operators(x, None, ops.RELU)
    with Calls() as backward:
        y.sum().backward()
    assert forward.count == {"moments": 1, "group_affine": 1}
    assert backward.count == {"output_sums": 1, "input_gradient": 1}


def test_the_gradient_before_the_relu_is_written_only_for_a_residual():
    """Without one both passes rectify for themselves, which saves a map."""
    x, residual, dy = (draw(2, 8, 3, 3, seed=k).requires_grad_(k < 2) for k in range(3))
    moments = ops.moments(x, 4)
    diagonal, bias = moments.instance
    received = []
    moments.link[0].register_hook(lambda gradient: received.append(gradient.clone()))
    for wanted in (residual, residual.detach(), None):
        y = ops.group_affine(x, moments.shift, None, diagonal, bias, wanted, ops.RELU, moments.link)
        y.backward(dy, retain_graph=True)
        torch.testing.assert_close(received.pop(), dy * (y > 0) if wanted is residual else dy)


def test_a_gradient_of_another_layout_is_accepted():
    x = draw(2, 8, 3, 3).requires_grad_()
    dy = draw(2, 8, 3, 3, seed=1)
    y = by_operators(x, None, None)
    expected = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
    result = torch.autograd.grad(y, x, dy.contiguous(memory_format=torch.channels_last), retain_graph=True)[0]
    torch.testing.assert_close(result, expected)
    ones = torch.autograd.grad(y, x, torch.ones_like(dy), retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], ones)


def test_fixed_coefficients_leave_the_input_without_a_backward_of_the_moments():
    x, weight, diagonal, bias = draw(2, 8, 3, 3), draw(1, 2, 4, 4), draw(2, 8), draw(2, 8)
    weight.requires_grad_()
    y = ops.group_affine(x, torch.zeros(8, dtype=torch.float64), weight, diagonal, bias, None, ops.RELU)
    y.sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 8, 3, 3), (2, 8, 0, 3)], ids=str)
def test_a_map_without_a_value_has_a_gradient_without_a_value(shape):
    x = torch.empty(shape, dtype=torch.float64, requires_grad=True)
    by_operators(x, None, ops.RELU).sum().backward()
    assert x.grad.shape == shape
