"""What is particular to the chain of coefficients on CPUs: groups of all widths, and any number of threads."""
import pytest
import torch
from chain_problem import assert_close, by_autograd, by_backend, problem

from ce_mm import ops
from ce_mm.layers import CENorm
from ce_mm.ops.backends import plain

numba_coefficients = pytest.importorskip("ce_mm.ops.backends.numba_coefficients")

# Few and many channels, samples and hidden channels, in groups of all widths; not all of them whole vectors.
SHAPES = [
    dict(n=1, c=20, g=2), dict(n=5, c=58, g=2), dict(n=9, c=36, g=4), dict(n=2, c=18, g=6), dict(n=3, c=264, g=8),
    dict(n=9, c=1040, g=16), dict(n=1, c=32, g=16), dict(n=4, c=24, g=24), dict(n=3, c=96, g=32),
    dict(n=3, c=2112, g=64), dict(n=70, c=64, g=64),
]  # fmt: skip


@pytest.fixture
def runs(monkeypatch):
    """How many threads each of the kernels was called for."""
    threads = []
    for name in ("_forward_kernel", "_backward_kernel"):
        kernel = getattr(numba_coefficients, name)

        def call(arguments, count, kernel=kernel):
            threads.append(count)
            return kernel(arguments, count)

        monkeypatch.setattr(numba_coefficients, name, call)
    return threads


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_shapes_agree_with_float64(use, runs, shape, learns):
    exact = by_autograd(problem(**shape, learns=learns))
    use("numba")
    assert_close(by_backend(problem(**shape, learns=learns, dtype=torch.float32)), exact, tolerance=5e-6)
    assert len(runs) == 2


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(use, runs, monkeypatch, shape):
    def on(threads):
        monkeypatch.setattr(numba_coefficients, "_threads", lambda *_: threads)
        return by_backend(problem(**shape, dtype=torch.float32))

    use("numba")
    assert all(map(torch.equal, on(1), on(2)))
    assert all(map(torch.equal, on(1), on(5)))
    assert runs == [1, 1, 2, 2, 1, 1, 5, 5]


def test_the_default_type_of_tensors_plays_no_part(use):
    use("numba")
    expected, p = by_backend(problem(dtype=torch.float32)), problem(dtype=torch.float32)
    torch.set_default_dtype(torch.float64)
    try:
        mine = by_backend(p)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, mine, expected))


def test_a_second_backward_gives_the_same_bits(use):
    use("numba")
    layer, x = CENorm(32), torch.randn(2, 32, 3, 3, requires_grad=True)
    y = layer(x, rectifier=ops.RELU)
    inputs = [x, *layer.parameters()]
    one, two = (torch.autograd.grad(y, inputs, torch.ones_like(y), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, one, two))


def test_of_a_single_value_mean_and_covariance_are_exact(use):
    def averages(moments, by):
        p = problem(n=1, c=32, g=16, positions=1, dtype=torch.float32)
        for buffer in p.layer.buffers():
            buffer.zero_()
        p.moments = moments
        by(p)
        return p.layer.norm.running_mean, p.layer.norm.running_var, p.layer.bd.running_whitening

    use("numba")
    moments = problem(n=1, c=32, g=16, positions=1, dtype=torch.float32).moments
    values = moments.instance[0].view(2, 16, 1)
    moments = moments._replace(second=(values * values.mT)[None])
    mean, variance, whitening = averages(moments, by_backend)
    assert torch.equal(mean, averages(moments, by_autograd)[0])
    assert not variance.any()
    for group in whitening:
        assert torch.equal(group, group.diagonal().diag())


@pytest.mark.parametrize("channels", [1, 2, 32])
def test_a_channel_that_lies_far_from_the_shift_is_found_before_any_average_moves(use, channels):
    use("numba")
    p = problem(n=9, c=32, g=2, dtype=torch.float32)
    before = [buffer.clone() for buffer in p.layer.buffers()]
    assert by_backend(p, checks=True) is not None
    assert not all(map(torch.equal, p.layer.buffers(), before))
    p.moments.instance[0, :, -channels:] += 1000
    before = [buffer.clone() for buffer in p.layer.buffers()]
    assert by_backend(p, checks=True) is None
    assert all(map(torch.equal, p.layer.buffers(), before))
    assert by_backend(p, checks=False) is not None


@pytest.mark.parametrize("c", [1, 20, 1040])
def test_the_needed_shift_is_that_of_pytorch(c):
    generator = torch.Generator().manual_seed(0)
    mean, variance = 10 * torch.randn(c, generator=generator), torch.rand(c, generator=generator)
    mean[0] = torch.nan
    assert torch.equal(numba_coefficients.needed_shift(mean, variance), ops.needed_shift(mean, variance))


def test_a_batch_that_is_not_finite_moves_no_average(use):
    use("numba")
    layer, x = CENorm(32), torch.randn(2, 32, 3, 3)
    x[1, 5, 2, 2] = torch.nan
    before = [buffer.clone() for buffer in layer.buffers()]
    y = layer(x)
    assert y[:, :16].isnan().all()
    assert not layer.finite
    assert all(map(torch.equal, layer.buffers(), before))


@pytest.mark.parametrize("poison", [None, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("sizes", [(1, 1), (16, 40), (1500, 3)], ids=str)
def test_the_averages_move_all_or_none(poison, sizes):
    def moved(module):
        generator = torch.Generator().manual_seed(0)
        draw = lambda size: torch.randn(size, generator=generator)  # noqa: E731
        averages = [ops.Average(draw(size), draw(size), m) for size in sizes for m in (0.1, 0.5, 0.75, 1)]
        if poison is not None:
            averages[2].value[-1] = poison
        return *module.move_averages(averages), *(buffer for buffer, _, _ in averages)

    for mine, theirs in zip(moved(numba_coefficients), moved(plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "average",
    [
        (torch.zeros(1), torch.ones(1), torch.tensor(0.5)),
        (torch.zeros(2, 2)[:, 0], torch.ones(2), 0.5),
        (torch.zeros(2), torch.ones(2, 2)[:, 0], 0.5),
        (torch.zeros(1, dtype=torch.float64), torch.ones(1), 0.5),
        (torch.zeros(1, dtype=torch.half), torch.ones(1), 0.5),
    ],
    ids=["a momentum that is a tensor", "strided", "of a strided value", "float64", "float16"],
)
def test_averages_that_the_kernel_does_not_take_are_left_to_plain_pytorch(monkeypatch, average):
    monkeypatch.setattr(numba_coefficients, "_average_kernel", None)
    finite, moved = numba_coefficients.move_averages([ops.Average(*average)])
    assert finite
    assert moved
    assert (average[0] == 0.5).all()


def test_no_average_moves_where_there_was_no_sample():
    average = ops.Average(torch.zeros(1), torch.ones(1), 0.5)
    finite, moved = numba_coefficients.move_averages([average], torch.tensor(False))
    assert finite
    assert not moved
    assert not average.buffer
