"""The backend of plain PyTorch calls: a batch in blocks, and what moves the averages."""
import pytest
import torch

from ce_mm import ops
from ce_mm.ops.backends import plain

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_passes(x, residual):
    """The results of the four passes, every one with all it can have."""
    n, c = x.shape[:2]
    shift, weight, vectors = draw(c), draw(1, c // 4, 4, 4), [draw(n, c, seed=k) for k in range(4)]
    y = plain.group_affine(x, shift, weight, vectors[0], vectors[1], residual, ops.RELU)
    return (
        *plain.moments(x, shift, 4, True, False),
        y,
        *plain.output_sums(residual, x, shift, y, ops.RELU, True, 4, True, False),
        plain.input_gradient(residual, y, x, shift, weight, vectors[0], weight, vectors[2], vectors[3]),
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_batch_of_many_blocks_gives_what_one_block_gives(monkeypatch, layout):
    x, residual = (draw(7, 8, 5, 3, seed=k).contiguous(memory_format=layout) for k in range(2))
    whole = all_passes(x, residual)
    monkeypatch.setattr(plain, "BLOCK_BYTES", 2 * 4 * x[0].numel())
    torch.testing.assert_close(all_passes(x, residual), whole)


class Elsewhere(torch.Tensor):
    """A tensor that says it is on another device than a CPU."""

    device = torch.device("xpu")


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_another_device_than_a_cpu_the_variance_is_as_precise_without_a_question(layout, dtype):
    x = (draw(4, 8, 5, 3) * 1e-3 + 100 * draw(4, 8, 1, 1, seed=1)).to(dtype).contiguous(memory_format=layout)
    instance, _ = plain.moments(x.as_subclass(Elsewhere), ops.data_shift(x), 4, True, False)
    expected = x.double().var((2, 3), correction=0)
    torch.testing.assert_close(instance.as_subclass(torch.Tensor)[1].double(), expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite_keeps_all_averages_where_they_were(poison):
    averages = [ops.Average(torch.zeros(2), torch.ones(2), 0.1)]
    averages.append(ops.Average(torch.zeros(1), torch.tensor([poison]), 0.1))
    finite, moved = plain.move_averages(averages)
    assert not finite
    assert not moved
    assert not any(buffer.any() for buffer, _, _ in averages)


def test_averages_move_by_their_momentum_where_there_was_a_sample():
    averages = [ops.Average(torch.zeros(2), torch.ones(2), 0.25)]
    assert [bool(flag) for flag in plain.move_averages(averages, present=torch.tensor(False))] == [True, False]
    assert averages[0].buffer.tolist() == [0, 0]
    plain.move_averages(averages)
    assert averages[0].buffer.tolist() == [0.25, 0.25]
