"""A base norm as an affine map of z, and how a batch moves its averages."""
import pytest
import torch
from torch import nn

from ce_mm import ops
from ce_mm.ops import base_norms


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_batch_norm_without_parameters_only_normalises():
    scale, offset = ops.batch_norm_affine(draw(5), draw(5).square(), None, None, 1e-3)
    expected = 1 / (draw(5).square() + 1e-3).sqrt()
    torch.testing.assert_close(scale, expected[None])
    torch.testing.assert_close(offset, -(expected * draw(5))[None])


@pytest.mark.parametrize("affine", [True, False])
def test_the_batch_norm_passes_gradcheck(affine):
    inputs = [value.requires_grad_() for value in (draw(5), draw(5, seed=1).square() + 0.1)]
    inputs += [draw(5, seed=k).requires_grad_() if affine else None for k in (2, 3)]
    assert torch.autograd.gradcheck(ops.batch_norm_affine, [*inputs, 1e-3])


def by_batch(norm, batches):
    """What a batch norm's buffers become, by this package."""
    base = base_norms.BatchNorm(norm)
    for x in batches:
        moments = ops.moments(x, 1, products=False)
        mean, variance, count = base.statistics(moments)
        assert base.learn(ops.Statistics(mean, variance, values=count), moments.shift)
    return norm


@pytest.mark.parametrize("momentum", [0.1, None], ids=["exponential", "cumulative"])
def test_the_averages_of_a_batch_norm_move_as_pytorch_moves_them(momentum):
    batches = [draw(3, 8, 4, 5, seed=seed) + 3 for seed in range(3)]
    theirs = nn.BatchNorm2d(8, momentum=momentum).double()
    for x in batches:
        theirs(x)
    torch.testing.assert_close(by_batch(nn.BatchNorm2d(8, momentum=momentum).double(), batches).state_dict(),
                               theirs.state_dict())  # fmt: skip


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite_keeps_all_averages_where_they_were(poison):
    norm, further = nn.BatchNorm2d(2), torch.zeros(1)
    found = ops.Statistics(torch.ones(2), torch.ones(2), values=8)
    average = ops.Average(further, torch.tensor([poison]), 0.1)
    assert not base_norms.BatchNorm(norm).learn(found, torch.zeros(2), [average])
    torch.testing.assert_close(norm.state_dict(), nn.BatchNorm2d(2).state_dict())
    assert not further.any()


@pytest.mark.parametrize("samples", [0, 4])
def test_averages_move_where_there_was_a_sample_on_any_process(samples):
    norm, further = nn.BatchNorm2d(2, momentum=0.25), torch.zeros(1)
    found = ops.Statistics(torch.ones(2), torch.ones(2), values=torch.tensor(samples))
    assert base_norms.BatchNorm(norm).learn(found, torch.ones(2), [ops.Average(further, torch.ones(1), 0.5)])
    assert norm.running_mean.tolist() == ([0.5, 0.5] if samples else [0, 0])
    assert further.item() == (0.5 if samples else 0)
    assert norm.num_batches_tracked == (1 if samples else 0)


def test_a_norm_without_averages_moves_what_it_is_given():
    further = torch.zeros(1)
    base = base_norms.GroupNorm(nn.GroupNorm(2, 4))
    assert base.learn(ops.Statistics(), torch.zeros(4), [ops.Average(further, torch.ones(1), 0.5)])
    assert further.item() == 0.5
