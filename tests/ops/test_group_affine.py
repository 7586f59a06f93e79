import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import BaseTorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ce_mm import ops
from ce_mm.ops.backends import plain

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def arguments(n=2, groups=3, g=4, h=5, w=3, samples=1, seed=0):
    """x, shift, weight, diagonal, bias, residual."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    c = groups * g
    return draw(n, c, h, w), draw(c), draw(samples, groups, g, g), draw(n, c), draw(n, c), draw(n, c, h, w)


RECTIFIERS = [None, ops.RELU, 0.5]


def formula(x, shift, weight, diagonal, bias, residual, rectifier):
    result = []
    for k, z in enumerate(x - shift[..., None, None]):
        matrix = torch.zeros(len(z), len(z), dtype=z.dtype)
        if weight is not None:
            matrix = matrix + torch.block_diag(*weight[k % len(weight)])
        if diagonal is not None:
            matrix = matrix + torch.diag(diagonal[k])
        result.append(torch.einsum("ij,jhw->ihw", matrix, z) + bias[k % len(bias)][:, None, None])
    y = torch.stack(result)
    y = y if residual is None else y + residual
    return y if rectifier is None else y.clamp(0, rectifier)


@given(
    n=st.integers(1, 3),
    groups=st.integers(1, 3),
    g=st.sampled_from([2, 3, 4]),
    per_sample=st.booleans(),
    drop=st.sampled_from(["nothing", "weight", "diagonal"]),
    has_residual=st.booleans(),
    rectifier=st.sampled_from(RECTIFIERS),
    layout=st.sampled_from(LAYOUTS),
    shifts=st.booleans(),
)
def test_every_position_of_a_group_is_mapped_by_the_group_s_matrix(
    n, groups, g, per_sample, drop, has_residual, rectifier, layout, shifts
):
    x, shift, weight, diagonal, bias, residual = arguments(n, groups, g, samples=n if per_sample else 1)
    shift = x.mean((2, 3)) if shifts else shift
    weight = None if drop == "weight" else weight
    diagonal = None if drop == "diagonal" else diagonal
    bias = bias[: n if per_sample else 1]
    residual = residual if has_residual else None
    rest = weight, diagonal, bias, residual, rectifier
    y = ops.group_affine(x.contiguous(memory_format=layout), shift, *rest)
    torch.testing.assert_close(y, formula(x, shift, *rest))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_has_the_type_and_layout_of_x(layout, dtype):
    x, *coefficients, residual = arguments()
    x = x.to(dtype).contiguous(memory_format=layout)
    work = ops.compute_dtype(dtype)
    y = ops.group_affine(x, *(value.to(work) for value in coefficients), residual.to(dtype))
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=layout)


def test_the_result_may_be_changed_in_place():
    x, shift, weight, diagonal, bias, residual = arguments()
    x.requires_grad_()
    y = ops.group_affine(x, shift, weight, diagonal, bias, residual)
    assert not y._is_view()
    (y.relu_() + 1).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("rectifier", RECTIFIERS)
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_with_permission_the_result_is_written_over_x(monkeypatch, layout, dtype, has_residual, rectifier):
    x, *coefficients, residual = (value.float() for value in arguments(n=5))
    x = x.to(dtype).contiguous(memory_format=layout)
    rest = *coefficients, residual.to(dtype) if has_residual else None, rectifier
    monkeypatch.setattr(plain, "BLOCK_BYTES", 2 * 4 * x[0].numel())
    expected = ops.group_affine(x, *rest)
    with torch.no_grad():
        y = ops.group_affine(x, *rest, overwrite=True)
    assert y.data_ptr() == x.data_ptr()
    assert torch.equal(y, expected)


def test_permission_is_not_used_where_a_mode_may_have_kept_x():
    x, *rest = arguments()
    before = x.clone()
    with torch.no_grad(), BaseTorchFunctionMode():
        ops.group_affine(x, *rest, overwrite=True)
    assert torch.equal(x, before)


def test_permission_is_not_used_where_a_gradient_may_be_wanted_or_somebody_looks_on():
    x, *rest = arguments()
    before, expected = x.clone(), ops.group_affine(x, *rest)
    assert torch.equal(ops.group_affine(x, *rest, overwrite=True), expected)
    with torch.no_grad(), FlopCounterMode(display=False):
        assert torch.equal(ops.group_affine(x, *rest, overwrite=True), expected)
    assert torch.equal(x, before)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("rectifier", RECTIFIERS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_group_affine_passes_gradcheck(samples, rectifier, layout):
    x, shift, weight, diagonal, bias, residual = arguments(h=2, w=2, groups=2, g=2, samples=samples)
    x = x.contiguous(memory_format=layout)
    inputs = [value.requires_grad_() for value in (x, weight, diagonal, bias, residual)]
    assert torch.autograd.gradcheck(
        lambda x, weight, diagonal, bias, residual: ops.group_affine(
            x, shift, weight, diagonal, bias, residual, rectifier
        ),
        inputs,
    )


@pytest.mark.parametrize("absent", [2, 3], ids=["weight", "diagonal"])
def test_one_kind_of_coefficients_alone_passes_gradcheck(absent):
    values = list(arguments(h=2, w=2, groups=2, g=2))[:5]
    values[absent] = None
    inputs = [v if v is None or k == 1 else v.requires_grad_() for k, v in enumerate(values)]
    assert torch.autograd.gradcheck(ops.group_affine, inputs)


@pytest.mark.parametrize("rectifier", RECTIFIERS)
def test_the_operators_pass_opcheck(rectifier):
    x, shift, weight, diagonal, bias, residual = arguments()
    for value in (x, weight, diagonal, bias, residual):
        value.requires_grad_()
    affine, no_link = torch.ops.ce_mm.group_affine.default, (None,) * 4
    torch.library.opcheck(affine, (x, shift, weight, diagonal, bias, residual, rectifier, *no_link))
    torch.library.opcheck(affine, (x, shift, None, diagonal, bias, None, rectifier, *no_link))

    dy, x = residual.detach(), x.detach()
    y = None if rectifier is None else x
    for keep in {False, y is not None}:
        torch.library.opcheck(torch.ops.ce_mm.output_sums.default, (dy, x, shift, y, rectifier, keep, 4, True, False))
    of_z = (weight.detach(), diagonal.detach(), bias.detach())
    torch.library.opcheck(
        torch.ops.ce_mm.input_gradient.default, (dy, y, x, shift, weight.detach(), bias.detach(), *of_z)
    )
