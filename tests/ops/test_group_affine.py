import pytest
import torch

from ce_mm import ops


def arguments(n=2, groups=3, g=4, h=5, w=3, samples=2):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    return draw(n, groups * g, h, w), draw(samples, groups, g, g), draw(samples, groups * g), draw(groups * g)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("g", [1, 4])
def test_every_position_of_a_group_is_multiplied_by_the_group_s_matrix(samples, g):
    x, weight, bias, shift = arguments(g=g, samples=samples)
    y = ops.group_affine(x, weight, bias, shift)
    for n in range(2):
        full = torch.block_diag(*weight[n % samples])
        expected = torch.einsum("ij,jhw->ihw", full, x[n] - shift[:, None, None]) + bias[n % samples][:, None, None]
        torch.testing.assert_close(y[n], expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_has_the_type_and_layout_of_x(memory_format, dtype):
    x, weight, bias, shift = arguments()
    x = x.to(dtype).contiguous(memory_format=memory_format)
    work = ops.compute_dtype(dtype)
    y = ops.group_affine(x, weight.to(work), bias.to(work), shift.to(work))
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=memory_format)


def test_the_result_may_be_changed_in_place():
    x, weight, bias, shift = arguments()
    x.requires_grad_()
    y = ops.group_affine(x, weight, bias, shift)
    assert not y._is_view()
    (y.relu_() + 1).sum().backward()
    assert x.grad.isfinite().all()


def test_group_affine_passes_gradcheck():
    x, weight, bias, shift = arguments(h=2, w=2, groups=2, g=2)
    inputs = (x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), shift)
    assert torch.autograd.gradcheck(ops.group_affine, inputs)
