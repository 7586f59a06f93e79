"""The Triton kernels give what plain PyTorch gives: on a GPU where there is one, else in Triton's interpreter."""
import itertools
from types import SimpleNamespace

import pytest
import torch
from triton_modules import load

from ce_mm import ops
from ce_mm.ops.backends import plain

triton = pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUTS = [torch.contiguous_format, torch.channels_last]
KERNELS = ["_sums_kernel", "_affine_kernel", "_input_gradient_kernel"]
#: The largest error, as a share of the largest value.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-7}


@pytest.fixture
def kernels(runnable):
    """The module."""
    return runnable.passes


def problem(n=2, c=16, h=7, w=11, g=4, samples=1, dtype=torch.float32, layout=torch.contiguous_format):
    """Arguments for every pass, by their names."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(DEVICE)  # noqa: E731
    a_map = lambda: draw(n, c, h, w).to(dtype).contiguous(memory_format=layout)  # noqa: E731
    return SimpleNamespace(
        x=a_map(), dy=a_map(), residual=a_map(), rectified=a_map().relu(), shift=draw(c), g=g,
        weight=draw(samples, c // g, g, g), diagonal=draw(n, c), bias=draw(n, c),
        dmean=draw(n, c), dsquare=draw(n, c), dsecond=draw(samples, c // g, g, g),
    )  # fmt: skip


def all_passes(module, p):
    """The results of all four passes, every one with all it can have."""
    return (
        *module.moments(p.x, p.shift, p.g, True, False),
        module.group_affine(p.x, p.shift, p.weight, p.diagonal, p.bias, p.residual, ops.RELU),
        *module.output_sums(p.dy, p.x, p.shift, p.rectified, ops.RELU, True, p.g, True, False),
        module.input_gradient(p.dy, p.rectified, p.x, p.shift, p.weight, p.diagonal, p.dmean, p.dsquare, p.dsecond),
    )


def assert_same(mine, theirs, dtype=torch.float32):
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
        if other.numel():
            error = (one.double() - other.double()).abs().max() / other.double().abs().max().clamp_min(1e-30)
            assert error <= TOLERANCE[dtype]


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
    ],
)
def test_every_pass_agrees_for_every_width_of_group(kernels, n, c, h, w, g, layout, dtype):
    p = problem(n, c, h, w, g, dtype=dtype, layout=layout)
    assert_same(all_passes(kernels, p), all_passes(plain, p), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("g", [16, 64])
def test_every_configuration_that_the_tuner_may_choose_agrees(kernels, loaded, monkeypatch, dtype, g):
    p = problem(2, 64, 1, 57, g, dtype=dtype)
    for chosen in zip(*loaded.configurations, strict=True):
        for name, configuration in zip(KERNELS, chosen, strict=True):
            monkeypatch.setattr(getattr(kernels, name), "configs", [configuration])
        assert_same(all_passes(kernels, p), all_passes(plain, p), dtype)


def test_a_tile_that_groups_do_not_fill_leaves_the_next_tile_s_channels_alone(kernels, monkeypatch):
    p = problem(1, 18, 2, 2, 6)  # two groups in 16 rows, and the third in a tile of its own
    expected = plain.group_affine(p.x, p.shift, p.weight, None, p.bias, None, None)
    monkeypatch.setattr(kernels, "tiles_of", lambda channels, group_size: 1)
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    y = kernels.group_affine(p.x, p.shift, p.weight, None, p.bias, None, None)
    assert_same([y[:, :12]], [expected[:, :12]])
    assert not y[:, 12:].any()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("rectifier", [None, ops.RELU, 0.5])
def test_the_affine_map_agrees_whatever_it_is_made_of(kernels, layout, samples, rectifier):
    p = problem(3, 12, 3, 5, 4, samples=samples, layout=layout)
    for weight, diagonal, residual in itertools.product((p.weight, None), (p.diagonal, None), (p.residual, None)):
        if weight is None and diagonal is None:
            continue
        arguments = p.x, p.shift, weight, diagonal, p.bias[:samples], residual, rectifier
        assert_same([kernels.group_affine(*arguments)], [plain.group_affine(*arguments)])


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_sums_agree_with_and_without_products(kernels, products, per_sample):
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
def test_the_input_s_gradient_agrees_whatever_depends_on_it(kernels, present, samples):
    p = problem(2, 12, 3, 5, samples=samples)
    gradient = p.dy if present else None
    weight, diagonal = (getattr(p, name) if name in present else None for name in ("weight", "diagonal"))
    for dmean, dsquare, dsecond in itertools.product((p.dmean, None), (p.dsquare, None), (p.dsecond, None)):
        arguments = gradient, None, p.x, p.shift, weight, diagonal, dmean, dsquare, dsecond
        assert_same([kernels.input_gradient(*arguments)], [plain.input_gradient(*arguments)])


@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize("programs", [1, 2, 8])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_sums_do_not_depend_on_how_the_work_is_shared_out(kernels, monkeypatch, n, programs, layout):
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    monkeypatch.setattr(kernels, "SMALLEST_SHARE", 16)
    p = problem(n, 4, 3, 51, layout=layout)
    for per_sample in (False, True):
        arguments = p.x, p.shift, p.g, True, per_sample
        assert_same(kernels.moments(*arguments), plain.moments(*arguments))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_maps_of_the_other_layout_are_understood(kernels, layout):
    p, other = problem(layout=layout), LAYOUTS[layout == LAYOUTS[0]]
    expected = all_passes(plain, p)
    p.dy, p.residual, p.rectified = (t.contiguous(memory_format=other) for t in (p.dy, p.residual, p.rectified))
    assert_same(all_passes(kernels, p), expected)


def test_coefficients_need_not_be_contiguous(kernels):
    p = problem(2, 8)
    expected = all_passes(plain, p)
    for name in ("shift", "weight", "diagonal", "bias", "dmean", "dsquare", "dsecond"):
        value = getattr(p, name)
        setattr(p, name, torch.stack([value, value], dim=-1)[..., 0])
    assert_same(all_passes(kernels, p), expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_shift_for_each_sample_agrees(kernels, layout):
    p = problem(3, layout=layout)
    p.shift = p.diagonal
    assert_same(all_passes(kernels, p), all_passes(plain, p))


def test_a_mean_of_a_thousand_spreads_costs_no_accuracy(kernels):
    p = problem(2, 8, 9, 13)
    p.x += 1000
    p.shift = ops.data_shift(p.x)
    exact = SimpleNamespace(**{k: v.double() if isinstance(v, torch.Tensor) else v for k, v in vars(p).items()})
    for mine, theirs in zip(all_passes(kernels, p), all_passes(plain, exact), strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("dtype", "spread"), [(torch.float32, 1e-3), (torch.float16, 1), (torch.bfloat16, 1)], ids=str)
def test_the_variance_of_a_sample_far_from_the_others_is_as_precise_as_by_itself(kernels, layout, dtype, spread):
    p = problem(4, 16, 15, 23, layout=layout)
    x = (spread * p.x + 100 * p.diagonal[..., None, None]).to(dtype)
    exact = torch.stack([x.double().mean((2, 3)) - p.shift, x.double().var((2, 3), correction=0)])
    for products, per_sample in itertools.product((True, False), repeat=2):
        instance, _ = kernels.moments(x, p.shift, p.g, products, per_sample)
        torch.testing.assert_close(instance.double(), exact, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rectifier", [ops.RELU, 1e3])
def test_a_nan_goes_through_the_rectifier_and_back(kernels, dtype, rectifier):
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
def test_two_runs_give_the_same_bits(kernels, dtype):
    p = problem(dtype=dtype)
    for one, two in zip(all_passes(kernels, p), all_passes(kernels, p), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_operators_and_their_joint_backward_agree(use, layout):
    p = problem(2, 24, 5, 13, 8, layout=layout)

    def through(backend):
        use(backend)
        x, residual = p.x.clone().requires_grad_(), p.residual.clone().requires_grad_()
        m = ops.moments(x, p.g, shift=p.shift)
        mean, variance = m.instance
        weight, diagonal = torch.tanh(m.second), torch.sin(variance + mean)
        y = ops.group_affine(x, p.shift, weight, diagonal, mean * diagonal, residual, ops.RELU, m.link)
        return y, *torch.autograd.grad(y, [x, residual], p.dy)

    assert_same(through("triton"), through("plain"))


@pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing compiles in this process")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_kernels_compile_for_a_gpu_and_load_whole_vectors(monkeypatch, tmp_path, layout):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module = load("triton_passes")
    p = problem(2, 32, 4, 8, 16, dtype=torch.bfloat16, layout=layout)
    constants = module._shape_arguments(p.x, p.g) | {"RELU": True, "TILE": 2048}
    for tuned in (getattr(module, name) for name in KERNELS):
        signature, known, aligned = {}, {}, {}
        for place, parameter in enumerate(tuned.fn.params):
            name = parameter.name
            if parameter.is_constexpr:
                signature[name], known[place,] = "constexpr", constants[name]
            elif name in ("x", "dy", "rectified", "gradient", "residual", "y", "dx"):
                signature[name], aligned[place,] = "*bf16", [["tt.divisibility", 16]]
            elif name.startswith("of_") or name == "ceiling":
                signature[name] = "fp32"
            elif parameter.do_not_specialize:
                signature[name] = "i32"
            else:
                signature[name], aligned[place,] = "*fp32", [["tt.divisibility", 16]]
        source = triton.compiler.ASTSource(tuned.fn, signature, known, aligned)
        target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
        code = triton.compile(source, target=target, options={"num_warps": 4}).asm["ptx"]
        assert "mma.sync" in code
        assert "ld.global.b16" not in code
        assert "st.global.b16" not in code
