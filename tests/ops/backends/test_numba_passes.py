"""What is Numba's own: maps of many tiles, shared out among threads, read and written in place or through a tile."""
import itertools
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from pass_cases import LAYOUTS, all_passes, assert_same, problem

from ce_mm import ops
from ce_mm.layers import CENorm
from ce_mm.ops.backends import plain

passes = pytest.importorskip("ce_mm.ops.backends.numba_passes")

#: Of maps that are less than a vector, that end inside of one, of a block or a tile, or at the end of each.
POSITIONS = [(1, 1), (3, 5), (4, 4), (1, 33), (7, 7), (8, 32), (14, 14), (1, 257), (20, 27)]


@pytest.fixture
def threads():
    """A function that sets PyTorch's number of them for the time of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("h", "w"), POSITIONS)
@pytest.mark.parametrize("shifted", [True, False])
def test_every_length_of_a_map_agrees(layout, h, w, shifted):
    p = problem(3, 32, h, w, 16, layout=layout)
    p.shift = p.shift if shifted else torch.zeros_like(p.shift)
    assert_same(all_passes(passes, p), all_passes(plain, p))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("has_residual", [True, False])
def test_what_overwrites_x_writes_the_same_and_into_x(layout, shifted, has_residual):
    p = problem(2, 32, 21, 31, 16, layout=layout)
    shift, residual = p.shift if shifted else torch.zeros_like(p.shift), p.residual if has_residual else None
    arguments = shift, p.weight, p.diagonal, p.bias, residual, ops.RELU
    expected = passes.group_affine(p.x, *arguments)
    assert passes.group_affine(p.x, *arguments, overwrite=True) is p.x
    assert torch.equal(p.x, expected)


def test_results_are_the_same_bits_whatever_the_number_of_threads(threads):
    p = problem(5, 32, 21, 31, 16)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append([*all_passes(passes, p), *passes.moments(p.x, p.shift, p.g, False, True)])
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)


def test_one_value_has_the_variance_0_exactly():
    p = problem(4, 16, 1, 1, 16)
    for products in (True, False):
        assert not passes.moments(p.x, p.shift, p.g, products, False)[0][1].any()


def test_sums_over_many_tiles_lose_nothing():
    x = torch.rand(1, 2, 512, 512, generator=torch.Generator().manual_seed(0)) + 1
    (mean, variance), second = passes.moments(x, torch.zeros(2), 2, True, False)
    exact = x.double()
    torch.testing.assert_close(mean.double(), exact.mean((2, 3)), rtol=2e-7, atol=0)
    torch.testing.assert_close(variance.double(), exact.var((2, 3), correction=0), rtol=1e-5, atol=0)
    rows = exact.flatten(2)[0]
    torch.testing.assert_close(second.double()[0, 0], rows @ rows.T / rows.shape[1], rtol=2e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_rounded_as_pytorch_rounds_them(dtype):
    special = torch.tensor([float("inf"), -float("inf"), 65504.0, 65520.0, 1e-7, -1e-8, 3.4e38, 1 + 2**-8, 1 + 2**-9])
    values = torch.cat([special, torch.randn(300, generator=torch.Generator().manual_seed(0))])
    y = torch.zeros(1, 1, 1, values.numel(), dtype=dtype)
    passes.group_affine(
        y, torch.zeros(1), None, torch.ones(1, 1), torch.zeros(1, 1), values.view_as(y), None, overwrite=True
    )
    assert torch.equal(y.flatten(), values.to(dtype))


def test_a_nan_of_bfloat16_stays_one():
    bits = torch.tensor([0x7FFF, -1, 0x7F81, 0x7FC0], dtype=torch.int16).repeat(8)
    x = bits.view(torch.bfloat16).view(1, 1, 4, 8)
    y = passes.group_affine(x, torch.zeros(1), None, torch.ones(1, 1), torch.zeros(1, 1), None, None)
    assert y.isnan().all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_goes_where_plain_lets_it_go(poison):
    for layout, g in itertools.product(LAYOUTS, (2, 16)):
        p = problem(2, 32, 17, 19, g, layout=layout)
        p.x[1, 3, 4, 5] = p.dy[0, 20, 7, 2] = poison
        for mine, theirs in zip(all_passes(passes, p), all_passes(plain, p), strict=True):
            assert torch.equal(mine.isfinite(), theirs.isfinite())
            assert torch.equal(mine.isnan(), theirs.isnan())


def test_a_residual_that_is_x_itself_is_added_as_it_was():
    p = problem(2, 32, 7, 7, 16)
    arguments = p.shift, p.weight, p.diagonal, p.bias
    expected = passes.group_affine(p.x, *arguments, p.x.clone(), None)
    assert torch.equal(passes.group_affine(p.x, *arguments, p.x, None, overwrite=True), expected)


def test_what_has_no_memory_of_its_own_values_is_read_as_what_it_stands_for():
    p = problem(2, 16, 5, 5, 16)
    negative = all_passes(passes, SimpleNamespace(**vars(p) | dict(x=torch._neg_view(p.x), dy=torch._neg_view(p.dy))))
    p.x, p.dy = -p.x, -p.dy
    assert all(map(torch.equal, negative, all_passes(passes, p)))
    zero = torch._efficientzerotensor(p.dy.shape)
    dx = passes.input_gradient(zero, None, p.x, p.shift, p.weight, p.diagonal, None, None, None)
    assert not dx.any()


def test_a_shift_of_float64_is_subtracted_in_float64():
    p = problem(2, 16, 5, 5, 16)
    shift = p.shift.double()
    (mean, _), _ = passes.moments(p.x, shift, 16, True, False)
    torch.testing.assert_close(mean, (p.x.double() - shift[:, None, None]).mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shift", torch.zeros(3)),
        ("weight", torch.zeros(1, 1, 16, 16)),
        ("diagonal", torch.zeros(2, 16)),
        ("bias", torch.zeros(2, 32, dtype=torch.bfloat16)),
        ("bias", torch.zeros(2, 32, device="meta")),
    ],
)
def test_coefficients_that_do_not_fit_the_map_are_refused(name, value):
    p = problem(2, 32, 5, 5, 16)
    setattr(p, name, value)
    with pytest.raises(RuntimeError, match=r"coefficients of a map on a CPU have \d+ numbers of float32.* got \("):
        passes.group_affine(p.x, p.shift, p.weight, p.diagonal, p.bias, None, None)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("place", "value"), [("bd.running_whitening", torch.randn(2, 16, 16)), ("mix", torch.nn.Parameter(torch.empty(0)))]
)
def test_a_layer_whose_tensors_are_not_its_own_is_left_to_calls_that_say_so(training, place, value):
    ce = CENorm(512).train(training)
    holder, _, name = place.rpartition(".")
    setattr(ce.get_submodule(holder), name, value)
    with pytest.raises(RuntimeError, match=r"must match|invalid for input"):
        ce(torch.randn(2, 512, 5, 5))


IN_A_FAKE_MODE = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from ce_mm.layers import CENorm
from ce_mm.ops.backends import choose
with FakeTensorMode():
    choose(torch.device("cpu"), torch.float32, 16)
x = torch.randn(2, 16, 5, 5)
assert CENorm(16).eval()(x, x.bfloat16()).isfinite().all()
"""


def test_a_mode_that_looks_on_when_the_backend_is_imported_leaves_nothing_in_it():
    subprocess.run([sys.executable, "-c", IN_A_FAKE_MODE], check=True)
