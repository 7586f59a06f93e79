import pytest
import torch

from ce_mm import ops


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def arguments(n=3, c=8, g=4, hidden=3):
    """Tensors that need gradients, and numbers by their names."""
    moments = ops.moments(draw(n, c, 4, 5), g)
    gate = draw(hidden, c, seed=3), draw(hidden, seed=4), draw(hidden, seed=5), draw(c, hidden, seed=6)
    tensors = moments.instance, moments.second, draw(c, seed=1), draw(c, seed=2), *gate, draw(1, seed=7)
    return [t.requires_grad_() for t in tensors], dict(norm_eps=1e-3, eps=1e-2, iterations=3, bessel=20 / 19)


def equilibrium(tensors, numbers):
    *before, fc1, ln_weight, ln_bias, fc2, mix = tensors
    return ops.equilibrium(*before, ops.Gate(fc1, ln_weight, ln_bias, fc2, 1e-5), mix, **numbers)


def test_it_is_the_chain_of_its_steps():
    tensors, numbers = arguments()
    instance, second, gamma, beta, *gate, mix = tensors
    coefficients, used = equilibrium(tensors, numbers)
    mean, variance = ops.batch_statistics(instance)
    scale, offset = ops.batch_norm_affine(mean, variance, gamma, beta, 1e-3)
    whitening = ops.newton_schulz(ops.covariance(mean, second, scale, 1e-2), 3)
    weights, inv_std_scale = ops.reweighting(instance, scale, ops.Gate(*gate, 1e-5), 20 / 19, None)
    weight, diagonal, bias = ops.equilibrium_affine(scale, offset, whitening, weights, mix)
    expected = weight, diagonal, bias, mean, variance, whitening, inv_std_scale
    assert all(map(torch.equal, (*coefficients, *used), expected))


def test_it_passes_gradcheck_by_the_batch_and_by_given_statistics():
    tensors, numbers = arguments()
    assert torch.autograd.gradcheck(lambda *values: equilibrium(values, numbers)[0], tensors)
    _, given = equilibrium(tensors, numbers)
    tensors.pop(1)
    assert torch.autograd.gradcheck(lambda instance, *rest: equilibrium([instance, given, *rest], numbers)[0], tensors)


def test_with_the_statistics_of_the_batch_given_back_the_coefficients_stay():
    tensors, numbers = arguments()
    coefficients, used = equilibrium(tensors, numbers)
    tensors[1] = used
    again, given = equilibrium(tensors, numbers)
    assert all(map(torch.equal, (*again, *given), (*coefficients, *used)))


def test_the_statistics_are_given_without_gradient():
    coefficients, used = equilibrium(*arguments())
    assert all(value.requires_grad for value in coefficients)
    assert not any(value.requires_grad for value in used)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite_keeps_all_averages_where_they_were(poison):
    averages = [(torch.zeros(2), torch.ones(2), 0.1), (torch.zeros(1), torch.tensor([poison]), 0.1)]
    finite, moved = ops.update_averages(averages)
    assert not finite
    assert not moved
    assert not any(buffer.any() for buffer, _, _ in averages)


def test_averages_move_by_their_momentum_where_there_was_a_sample():
    buffer = torch.zeros(2)
    averages = [(buffer, torch.ones(2), 0.25)]
    assert [bool(flag) for flag in ops.update_averages(averages, present=torch.tensor(False))] == [True, False]
    assert buffer.tolist() == [0, 0]
    ops.update_averages(averages)
    assert buffer.tolist() == [0.25, 0.25]
