"""The compiled passes give what plain PyTorch gives: Triton's on a GPU or in its interpreter, Numba's on a CPU."""
import functools
import itertools
from types import SimpleNamespace

import pytest
import torch
from pass_cases import LAYOUTS, TOLERANCE, all_passes, assert_same
from pass_cases import problem as problem_on

from ce_mm import ops
from ce_mm.ops.backends import plain


@pytest.fixture(params=["numba", "triton"])
def name(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture
def kernels(name, request):
    """The module."""
    if name == "triton":
        return request.getfixturevalue("runnable").passes
    return pytest.importorskip("ce_mm.ops.backends.numba_passes")


@pytest.fixture
def problem(name):
    """:func:`pass_cases.problem` where the backend runs."""
    return functools.partial(problem_on, device="cuda" if name == "triton" and torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ("n", "c", "h", "w", "g"),
    [
        (2, 3, 5, 3, 1),
        (1, 58, 1, 9, 2),
        (2, 4, 7, 11, 4),
        (1, 24, 3, 23, 8),
        (1, 40, 1, 1, 8),
        (2, 16, 5, 13, 16),
        (1, 32, 3, 11, 32),
        (1, 64, 3, 7, 64),
        (2, 18, 1, 7, 6),
        (1, 12, 2, 2, 12),
        (3, 16, 21, 31, 16),
        (2, 6, 17, 33, 2),
    ],
)
def test_every_pass_agrees_for_every_width_of_group(kernels, problem, n, c, h, w, g, layout, dtype):
    p = problem(n, c, h, w, g, dtype=dtype, layout=layout)
    assert_same(all_passes(kernels, p), all_passes(plain, p), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("c", [7, 24, 48])
def test_where_no_matrix_ties_channels_every_number_of_them_agrees(kernels, problem, c, layout, dtype):
    p = problem(2, c, 5, 13, 1, dtype=dtype, layout=layout)
    mine, theirs = (
        (
            *module.moments(p.x, p.shift, 1, False, True),
            module.group_affine(p.x, p.shift, None, p.diagonal, p.bias, p.residual, ops.RELU),
            *module.output_sums(p.dy, p.x, p.shift, p.rectified, ops.RELU, True, 1, False, True),
            module.input_gradient(p.dy, p.rectified, p.x, p.shift, None, p.diagonal, None, p.slopes, p.offset),
        )
        for module in (kernels, plain)
    )
    assert_same(mine, theirs, dtype)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("rectifier", [None, ops.RELU, 0.5])
def test_the_affine_map_agrees_whatever_it_is_made_of(kernels, problem, layout, samples, rectifier):
    p = problem(3, 12, 3, 5, 4, samples=samples, layout=layout)
    for weight, diagonal, residual in itertools.product((p.weight, None), (p.diagonal, None), (p.residual, None)):
        if weight is None and diagonal is None:
            continue
        arguments = p.x, p.shift, weight, diagonal, p.bias[:samples], residual, rectifier
        assert_same([kernels.group_affine(*arguments)], [plain.group_affine(*arguments)])


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_sums_agree_with_and_without_products(kernels, problem, products, per_sample):
    p = problem(3, 12, 3, 5)
    arguments = p.x, p.shift, p.g, products, per_sample
    assert_same(kernels.moments(*arguments), plain.moments(*arguments))
    capped = p.rectified.clamp(max=0.5)
    for rectified, rectifier, keep in (
        (p.rectified, ops.RELU, True), (p.rectified, ops.RELU, False), (capped, 0.5, True), (None, None, False),
    ):  # fmt: skip
        arguments = p.dy, p.x, p.shift, rectified, rectifier, keep, p.g, products, per_sample
        assert_same(kernels.output_sums(*arguments), plain.output_sums(*arguments))


@pytest.mark.parametrize("present", [(), ("weight",), ("diagonal",), ("weight", "diagonal")], ids=str)
@pytest.mark.parametrize("samples", [1, 2])
def test_the_input_s_gradient_agrees_whatever_depends_on_it(kernels, problem, present, samples):
    p = problem(2, 12, 3, 5, samples=samples)
    gradient = p.dy if present else None
    weight, diagonal = (getattr(p, name) if name in present else None for name in ("weight", "diagonal"))
    for of_z in itertools.product((p.slope, None), (p.slopes, None), (p.offset, None)):
        arguments = gradient, None, p.x, p.shift, weight, diagonal, *of_z
        assert_same([kernels.input_gradient(*arguments)], [plain.input_gradient(*arguments)])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_maps_of_the_other_layout_are_understood(kernels, problem, layout):
    p, other = problem(layout=layout), LAYOUTS[layout == LAYOUTS[0]]
    expected = all_passes(plain, p)
    p.dy, p.residual, p.rectified = (t.contiguous(memory_format=other) for t in (p.dy, p.residual, p.rectified))
    assert_same(all_passes(kernels, p), expected)


def test_coefficients_need_not_be_contiguous(kernels, problem):
    p = problem(2, 8)
    expected = all_passes(plain, p)
    for name in ("shift", "weight", "diagonal", "bias", "slope", "slopes", "offset"):
        value = getattr(p, name)
        setattr(p, name, torch.stack([value, value], dim=-1)[..., 0])
    assert_same(all_passes(kernels, p), expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_shift_for_each_sample_agrees(kernels, problem, layout):
    p = problem(3, layout=layout)
    p.shift = p.diagonal
    assert_same(all_passes(kernels, p), all_passes(plain, p))


def test_a_mean_of_a_thousand_spreads_costs_no_accuracy(kernels, problem):
    p = problem(2, 8, 9, 13)
    p.x += 1000
    p.shift = ops.data_shift(p.x)
    exact = SimpleNamespace(**{k: v.double() if isinstance(v, torch.Tensor) else v for k, v in vars(p).items()})
    for mine, theirs in zip(all_passes(kernels, p), all_passes(plain, exact), strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("dtype", "spread"), [(torch.float32, 1e-3), (torch.float16, 1), (torch.bfloat16, 1)], ids=str)
def test_the_variance_of_a_sample_far_from_the_others_is_precise(kernels, problem, layout, dtype, spread):
    p = problem(4, 16, 15, 23, layout=layout)
    x = (spread * p.x + 100 * p.diagonal[..., None, None]).to(dtype)
    exact = torch.stack([x.double().mean((2, 3)) - p.shift, x.double().var((2, 3), correction=0)])
    for products, per_sample in itertools.product((True, False), repeat=2):
        instance, _ = kernels.moments(x, p.shift, p.g, products, per_sample)
        torch.testing.assert_close(instance.double(), exact, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rectifier", [ops.RELU, 1e3])
def test_a_nan_goes_through_the_rectifier_and_back(kernels, problem, dtype, rectifier):
    p = problem(1, 16, 1, 3, 16, dtype=dtype)
    p.x[0, 0, 0, 1] = torch.nan
    y = kernels.group_affine(p.x, p.shift, p.weight, None, p.bias, None, rectifier)
    assert y.isnan()[0, :, 0].tolist() == [[False, True, False]] * 16
    gradient = kernels.output_sums(p.dy, p.x, p.shift, y, rectifier, True, p.g, False, False)[0]
    assert torch.equal(gradient[..., 1], p.dy[..., 1])
    ones = torch.ones_like(p.diagonal, dtype=torch.float32)
    dx = kernels.input_gradient(p.dy, y, p.x, p.shift, None, ones, None, None, None)
    assert torch.equal(dx, gradient)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_two_runs_give_the_same_bits(kernels, problem, dtype):
    p = problem(dtype=dtype)
    for one, two in zip(all_passes(kernels, p), all_passes(kernels, p), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_operators_and_their_joint_backward_agree(use, name, problem, layout):
    p = problem(2, 24, 5, 13, 8, layout=layout)

    def through(backend):
        use(backend)
        x, residual = p.x.clone().requires_grad_(), p.residual.clone().requires_grad_()
        m = ops.moments(x, p.g, shift=p.shift)
        mean, variance = m.instance
        weight, diagonal = torch.tanh(m.second), torch.sin(variance + mean)
        y = ops.group_affine(x, p.shift, weight, diagonal, mean * diagonal, residual, ops.RELU, m.link)
        return y, *torch.autograd.grad(y, [x, residual], p.dy)

    assert_same(through(name), through("plain"))
