"""What is Triton's own: its tuner, its shares, and that its kernels compile for a GPU."""
import functools
import itertools
import re
import subprocess

import pass_cases
import pytest
import torch
from pass_cases import LAYOUTS, TOLERANCE, all_passes, assert_same
from triton_modules import load

from ce_mm.ops.backends import plain

triton = pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POINTER = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
KERNELS = ["_sums_kernel", "_affine_kernel", "_input_gradient_kernel"]
problem = functools.partial(pass_cases.problem, device=DEVICE)
not_interpreted = pytest.mark.skipif(
    triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing compiles in this process"
)


@pytest.fixture
def kernels(runnable):
    """The module."""
    return runnable.passes


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("g", [16, 32, 64])
def test_every_configuration_that_the_tuner_may_choose_agrees(kernels, loaded, monkeypatch, dtype, g):
    p = problem(2, 64, 1, 57, g, dtype=dtype)
    expected = all_passes(plain, p)
    for name in KERNELS:
        tuner = getattr(kernels, name).tuners["ieee" if dtype == torch.float32 else "tf32", g]
        for configuration in loaded.configurations[tuner]:
            monkeypatch.setattr(tuner, "configs", [configuration])
            assert_same(all_passes(kernels, p), expected, dtype)


def test_a_tile_that_groups_do_not_fill_leaves_the_next_tile_s_channels_alone(kernels, monkeypatch):
    p = problem(1, 18, 2, 2, 6)  # two groups in 16 rows, and the third in a tile of its own
    expected = plain.group_affine(p.x, p.shift, p.weight, None, p.bias, None, None)
    monkeypatch.setattr(kernels, "tiles_of", lambda channels, group_size: 1)
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    y = kernels.group_affine(p.x, p.shift, p.weight, None, p.bias, None, None)
    assert_same([y[:, :12]], [expected[:, :12]])
    assert not y[:, 12:].any()


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


@pytest.mark.parametrize(("n", "tiles"), [(100, 32), (3, 5), (4, 64), (1, 1), (7, 1)])
def test_a_pass_of_sums_has_no_more_programs_than_wanted_and_at_least_half(kernels, monkeypatch, n, tiles):
    monkeypatch.setattr(kernels, "PROGRAMS", 2112)
    samples, splits = kernels._shares(torch.empty(n, 1, 1000, 1000, device="meta"), tiles, False)
    assert 1056 <= tiles * triton.cdiv(n, samples) * splits <= 2112


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_a_product_takes_the_nearest_of_tf32_s_numbers(kernels, scale):
    z = scale * torch.randn(128, generator=torch.Generator().manual_seed(0))
    mantissa, exponent = torch.frexp(z.double())
    nearest = torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)
    x = torch.zeros(1, 128, 1, 1, dtype=torch.bfloat16, device=DEVICE)
    _, squares = kernels.moments(x, -z.to(DEVICE), 1, True, False)
    assert torch.equal(squares.double().cpu().flatten(), nearest**2)


ABSENT = {
    "_sums_kernel": [{"dy", "rectified", "ceiling", "gradient"}, {"ceiling"}, {"rectified", "ceiling", "gradient"}],
    "_affine_kernel": [{"ceiling"}],
    "_input_gradient_kernel": [set()],
}


def compiled(module, name, p, absent, configuration):
    """The kernel as it is compiled for an H100, in this configuration, for maps as ``p.x``."""
    constants = module._shape_arguments(p.x, p.g) | configuration.kwargs | {"RELU": True} | dict.fromkeys(absent)
    maps = dict.fromkeys(("x", "dy", "rectified", "gradient", "residual", "y", "dx"), POINTER[p.x.dtype])
    signature, known, aligned = {}, {}, {}
    kernel = getattr(module, name).kernel
    for place, parameter in enumerate(kernel.params):
        name = parameter.name
        if parameter.is_constexpr or name in absent:
            signature[name], known[place,] = "constexpr", constants[name]
        elif name.startswith("of_") or name == "ceiling":
            signature[name] = "fp32"
        elif parameter.do_not_specialize:
            signature[name] = "i32"
        else:
            signature[name], aligned[place,] = maps.get(name, "*fp32"), [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(kernel, signature, known, aligned)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    return triton.compile(source, target=target, options={"num_warps": configuration.num_warps})


def stack(kernel, path):
    """Bytes of a thread's that have no room in registers, by NVIDIA's own report on the compiled kernel."""
    path.write_bytes(kernel.asm["cubin"])
    command = triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", report)[1])


@not_interpreted
@pytest.mark.parametrize("g", [1, 2, 16, 32, 64])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_kernels_compile_for_a_gpu_into_registers_and_without_wgmma(
    monkeypatch, tmp_path, layout, dtype, g
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module = load("triton_passes")
    p = problem(2, 64, 4, 8, g, dtype=dtype, layout=layout)
    product = module._shape_arguments(p.x, g)
    # Elsewhere the code differs in masks or conversions alone, or has registers to spare.
    every = g == 64 if dtype == torch.float32 else g >= 16 and dtype == torch.bfloat16
    for name in KERNELS:
        configurations = getattr(module, name).tuners[product["PRECISION"], product["ROWS"]].configs
        for configuration, absent in itertools.product(configurations if every else configurations[:1], ABSENT[name]):
            kernel = compiled(module, name, p, absent, configuration)
            assert "wgmma" not in kernel.asm["ptx"]
            assert ("mma.sync" in kernel.asm["ptx"]) == (dtype != torch.float32)
            assert stack(kernel, tmp_path / "cubin") <= 64


@not_interpreted
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_kernels_load_whole_vectors(monkeypatch, tmp_path, layout):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module = load("triton_passes")
    p = problem(2, 32, 4, 8, 16, dtype=torch.bfloat16, layout=layout)
    for name in KERNELS:
        configuration = getattr(module, name).tuners["tf32", 16].configs[0]
        code = compiled(module, name, p, set(), configuration).asm["ptx"]
        assert "ld.global.b16" not in code
        assert "st.global.b16" not in code
