"""The paper's theory: what holds, against PyTorch and quadrature; what does not, by counterexample; and its page."""

import json
import math
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ce_mm.ops.reference import instance_variance
from tools.evidence.theory.batch_and_instance import (
    batch_from_instance,
    correlation,
    instance_statistics,
    normalised_covariance,
    normalised_instance_variance,
)
from tools.evidence.theory.decorrelation import (
    channel_spreads,
    equivalent_gamma,
    inverse_root,
    one_step_gamma,
    unit_trace_covariance,
    whitening,
)
from tools.evidence.theory.interference_game import (
    Game,
    equilibrium,
    interior_power,
    kkt_violation,
    linear_noise,
    multipliers,
    one_equilibrium_for_sure,
    rates,
    received,
    water_filling,
)
from tools.evidence.theory.numbers import GAINS, GAMMA, RHO, SCALE, STRONG, H, evidence
from tools.evidence.theory.page import page, rounded
from tools.evidence.theory.relu_moments import integrated_moment, relu_mean, relu_mean_square

DOCS = Path(__file__).parents[2] / "docs"

seeds = st.integers(0, 2**32 - 1)
scales = st.floats(1e-3, 10).flatmap(lambda size: st.sampled_from([size, -size]))


def random_group(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """γ of either sign and a correlation matrix of full rank."""
    generator = np.random.default_rng(seed)
    gamma = generator.uniform(0.05, 1, size) * generator.choice([-1, 1], size)
    rows = generator.standard_normal((size, 3 * size)) + generator.standard_normal((1, 3 * size))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return gamma, rows @ rows.T


def group_behind(norm: Callable[[torch.Tensor], torch.Tensor], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """γ of either sign, and over a batch the covariance of what ``norm`` makes of channels of different sizes."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((3, 4, 6, 6)) + generator.standard_normal((3, 1, 6, 6))
    x = x * generator.uniform(0.5, 2, (4, 1, 1)) + generator.standard_normal((3, 4, 1, 1))
    gamma = generator.uniform(0.05, 1, 4) * generator.choice([-1, 1], 4)
    return gamma, torch.cov(norm(torch.from_numpy(x)).transpose(0, 1).flatten(1), correction=0).numpy()


def random_game(seed: int, players: int = 3, positions: int = 5) -> Game:
    """Symmetric positive definite gains, none negative, and positive noise."""
    generator = np.random.default_rng(seed)
    root = generator.uniform(0, 1, (players, players))
    gains = root @ root.T + 0.1 * np.eye(players)
    return Game(gains, generator.uniform(0.1, 3, (players, positions)), generator.uniform(0.5, 5, players))


def random_power(game: Game, generator: np.random.Generator) -> np.ndarray:
    return game.budget[:, None] * generator.dirichlet(np.ones(game.noise.shape[1]), len(game.budget))


@pytest.fixture(scope="module")
def numbers() -> dict:
    return evidence()


@pytest.fixture
def run_tool(monkeypatch):
    def run(docs: Path) -> None:
        monkeypatch.setattr("sys.argv", ["theory", "--docs", str(docs)])
        runpy.run_module("tools.evidence.theory", run_name="__main__")

    return run


class TestReluMoments:
    @given(gamma=scales, u=st.floats(-10, 10))
    def test_closed_forms_equal_the_integral_for_every_beta_and_sign_of_gamma(self, gamma, u):
        beta = u * abs(gamma)
        assert relu_mean(gamma, beta) == pytest.approx(integrated_moment(gamma, beta, 1), rel=1e-9)
        assert relu_mean_square(gamma, beta) == pytest.approx(integrated_moment(gamma, beta, 2), rel=1e-9)

    @pytest.mark.parametrize("gamma", [0.0, 1e-9, -1e-9])
    @pytest.mark.parametrize("beta", [-0.5, 0.0, 0.5])
    def test_as_gamma_vanishes_they_become_those_of_the_rectified_beta(self, gamma, beta):
        assert relu_mean(gamma, beta) == pytest.approx(max(0, beta), abs=1e-9)
        assert relu_mean_square(gamma, beta) == pytest.approx(max(0, beta) ** 2, abs=1e-9)

    @given(gamma=scales, u=st.floats(0, 10))
    def test_beta_at_most_0_bounds_them_by_gamma_and_a_positive_beta_breaks_the_bounds(self, gamma, u):
        mean, square = abs(gamma) / math.sqrt(2 * math.pi), gamma**2 / 2
        assert relu_mean(gamma, -u * abs(gamma)) <= mean * (1 + 1e-12)
        assert relu_mean_square(gamma, -u * abs(gamma)) <= square * (1 + 1e-12)
        assume(u > 1e-6)
        assert relu_mean(gamma, u * abs(gamma)) > mean
        assert relu_mean_square(gamma, u * abs(gamma)) > square

    @given(gamma=scales, u=st.floats(-5, 5))
    def test_the_sign_before_erf_is_that_of_gamma(self, gamma, u):
        beta = u * abs(gamma)
        sign = math.copysign(1, gamma)
        gauss = math.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)
        erf = math.erf(beta / (math.sqrt(2) * gamma))
        mean = sign * gamma * gauss + beta / 2 * (1 + sign * erf)
        square = sign * gamma * beta * gauss + (gamma**2 + beta**2) / 2 * (1 + sign * erf)
        assert relu_mean(gamma, beta) == pytest.approx(mean, abs=1e-13 * abs(gamma))
        assert relu_mean_square(gamma, beta) == pytest.approx(square, abs=1e-12 * gamma**2)

    def test_arrays_broadcast(self):
        gamma, beta = np.array([[1.0], [-2.0]]), np.array([-1.0, 0.0, 1.0])
        for moment in (relu_mean, relu_mean_square):
            assert moment(gamma, beta).tolist() == [[moment(g, b).item() for b in beta] for g in (1.0, -2.0)]


class TestBatchAndInstance:
    @given(seed=seeds, n=st.integers(1, 4), c=st.integers(1, 5), h=st.integers(1, 4), eps=st.sampled_from([1e-5, 0.1]))
    def test_what_follows_from_the_instances_is_what_pytorch_finds(self, seed, n, c, h, eps):
        generator = np.random.default_rng(seed)
        x = 3 * generator.standard_normal((n, c, h, 3)) + generator.standard_normal((n, c, 1, 1))
        gamma, beta = generator.standard_normal((2, c))
        mean, var = instance_statistics(x)
        batch_mean, batch_var = batch_from_instance(mean, var)
        seen_mean, seen_var = torch.zeros(c).double(), torch.zeros(c).double()
        rows = torch.from_numpy(x)
        F.batch_norm(rows, seen_mean, seen_var, training=True, momentum=1.0)
        positions = n * h * 3
        np.testing.assert_allclose(batch_mean, seen_mean.numpy(), atol=1e-12)
        np.testing.assert_allclose(batch_var, seen_var.numpy() * (positions - 1) / positions, atol=1e-12)

        normalised = F.batch_norm(
            rows, None, None, torch.from_numpy(gamma), torch.from_numpy(beta), training=True, eps=eps
        )
        of_instances = normalised_instance_variance(var, batch_var, gamma, eps)
        np.testing.assert_allclose(of_instances, instance_variance(normalised, 0).numpy(), atol=1e-12)
        covariance = torch.cov(normalised.transpose(0, 1).flatten(1), correction=0).reshape(c, c).numpy()
        np.testing.assert_allclose(normalised_covariance(gamma, correlation(x, eps)), covariance, atol=1e-12)

    def test_rho_is_the_correlation_of_x_bar_and_that_of_x_tilde_has_the_sign_of_both_gammas_besides(self):
        x = np.random.default_rng(0).standard_normal((4, 2, 3, 3))
        gamma = np.array([2.0, -0.5])[:, None, None]
        assert correlation(gamma * x)[0, 1] == pytest.approx(-correlation(x)[0, 1])

    @given(seed=seeds)
    def test_instance_variance_lacks_what_samples_differ_by_in_their_means(self, seed):
        generator = np.random.default_rng(seed)
        x = generator.standard_normal((4, 3, 2, 2)) + generator.standard_normal((4, 3, 1, 1))
        gamma = generator.standard_normal(3)
        mean, var = instance_statistics(x)
        _, batch_var = batch_from_instance(mean, var)
        np.testing.assert_allclose(
            normalised_instance_variance(var, batch_var, gamma).mean(axis=0),
            gamma**2 * (1 - mean.var(axis=0) / batch_var),
        )

    def test_the_counterexamples_in_whole_numbers(self, numbers):
        numbers = numbers["statistics"]
        assert numbers["batch_var"] == [5, 5] and numbers["mean_of_instance_var"] == [1, 4]
        assert numbers["normalised_instance_var"] == [pytest.approx([0.8, 0.2])] * 2
        assert numbers["mean_square_about_beta"] == [pytest.approx([4, 0.25])] * 2
        assert numbers["covariance"] == [pytest.approx([4, -0.4]), pytest.approx([-0.4, 0.25])]
        assert numbers["covariance_with_x_tilde"] == [pytest.approx([20, -1.4]), pytest.approx([-1.4, 0.3125])]


class TestDecorrelation:
    @given(seed=seeds, size=st.integers(2, 8), iterations=st.integers(1, 5))
    def test_sigma_has_unit_trace_and_its_root_lies_between_the_identity_and_the_inverse_root(
        self, seed, size, iterations
    ):
        sigma = unit_trace_covariance(*random_group(seed, size))
        root = whitening(sigma, iterations)
        assert np.trace(sigma) == pytest.approx(1)
        assert np.linalg.eigvalsh(root - np.eye(size))[0] > 0
        assert np.linalg.eigvalsh(inverse_root(sigma) - root)[0] > -1e-9

    @given(seed=seeds, size=st.integers(2, 8))
    def test_one_step_enlarges_gamma_in_every_channel_by_its_closed_form_to_at_most_the_double(self, seed, size):
        gamma, rho = random_group(seed, size)
        after = equivalent_gamma(gamma, rho, 1)
        np.testing.assert_allclose(after, one_step_gamma(gamma, rho), rtol=1e-12)
        ratio = after / gamma
        assert (ratio > 1).all() and (ratio < 2).all()

    @given(seed=seeds, size=st.integers(2, 8))
    def test_the_first_step_is_short_of_the_inverse_root_so_no_group_meets_the_premise(self, seed, size):
        sigma = unit_trace_covariance(*random_group(seed, size))
        assert np.linalg.eigvalsh(inverse_root(sigma) - whitening(sigma, 1))[-1] >= math.sqrt(2) - 5 / 4 - 1e-9

    def test_one_channel_alone_meets_the_premise_and_keeps_its_gamma(self):
        alone = np.ones((1, 1))
        for iterations in (1, 2, 3):
            assert whitening(unit_trace_covariance(np.array([0.3]), alone), iterations) == inverse_root(alone) == 1

    @given(seed=seeds, size=st.integers(2, 8))
    def test_the_chain_of_inequalities_for_one_step(self, seed, size):
        gamma, rho = random_group(seed, size)
        mean_correlation = rho @ gamma**2 / np.sum(gamma**2)
        assert (np.abs(3 - mean_correlation) >= 3 - np.abs(mean_correlation)).all()
        assert (3 - np.abs(mean_correlation) > 2).all()

    @given(seed=seeds, size=st.integers(2, 8))
    def test_the_inverse_root_lengthens_least_along_the_top_eigenvector_and_there_too(self, seed, size):
        sigma = unit_trace_covariance(*random_group(seed, size))
        values, vectors = np.linalg.eigh(sigma)
        root, top = inverse_root(sigma), vectors[:, -1]
        vector = np.random.default_rng(seed + 1).standard_normal(size)
        assert np.sum((root @ vector) ** 2) >= np.sum(vector**2) / values[-1] * (1 - 1e-12)
        assert np.sum((root @ top) ** 2) == pytest.approx(1 / values[-1])
        assert 1 / values[-1] > 1

    def test_three_steps_shrink_gamma_in_the_weakest_of_three_channels(self):
        assert np.linalg.eigvalsh(RHO)[0] > 0
        ratio = equivalent_gamma(GAMMA, RHO, 3) / GAMMA
        assert ratio == pytest.approx([1.4228, 0.8846, 1.1235], abs=1e-4)
        assert (equivalent_gamma(GAMMA, RHO, 1) > GAMMA).all()

    def test_two_steps_can_shrink_it_too(self):
        gamma, rho = np.array([1.0, 0.3]), np.array([[1.0, 0.9], [0.9, 1.0]])
        assert equivalent_gamma(gamma, rho, 2)[0] < 0.9995

    @given(seed=seeds, size=st.integers(2, 8), iterations=st.integers(1, 5))
    def test_norms_and_standard_deviations_and_what_a_channel_keeps_of_itself_grow_for_any_number_of_steps(
        self, seed, size, iterations
    ):
        gamma, rho = random_group(seed, size)
        root = whitening(unit_trace_covariance(gamma, rho), iterations)
        vector = np.random.default_rng(seed + 1).standard_normal(size)
        assert np.linalg.norm(root @ vector) > np.linalg.norm(vector)
        assert np.linalg.norm(root @ gamma) > np.linalg.norm(gamma)
        assert (channel_spreads(gamma, rho, iterations) > np.abs(gamma)).all()
        assert (np.diag(root) > 1).all()

    @given(seed=seeds, size=st.integers(2, 8))
    def test_the_inverse_root_makes_all_standard_deviations_equal(self, seed, size):
        gamma, rho = random_group(seed, size)
        root = inverse_root(unit_trace_covariance(gamma, rho))
        covariance = root @ normalised_covariance(gamma, rho) @ root
        np.testing.assert_allclose(covariance, np.sum(gamma**2) * np.eye(size), atol=1e-9)

    @given(seed=seeds, iterations=st.integers(1, 5))
    def test_behind_instance_norm_the_channels_of_a_batch_have_a_correlation_matrix(self, seed, iterations):
        gamma, rho = group_behind(lambda x: F.instance_norm(x, eps=0), seed)
        np.testing.assert_allclose(np.diag(rho), 1)
        assert (equivalent_gamma(gamma, rho, 1) / gamma > 1).all()
        assert (channel_spreads(gamma, rho, iterations) > np.abs(gamma)).all()

    @given(seed=seeds, iterations=st.integers(1, 5))
    def test_behind_layer_norm_standard_deviations_grow_and_one_step_enlarges_their_vector(self, seed, iterations):
        gamma, covariance = group_behind(lambda x: F.layer_norm(x, x.shape[1:], eps=0), seed)
        spreads = np.abs(gamma) * np.sqrt(np.diag(covariance))
        sigma = unit_trace_covariance(gamma, covariance)
        assert np.linalg.eigvalsh(whitening(sigma, iterations) - np.eye(len(gamma)))[0] > 0
        assert (channel_spreads(gamma, covariance, iterations) > spreads).all()
        assert (np.abs(whitening(sigma, 1) @ (np.sign(gamma) * spreads)) > spreads).all()
        np.testing.assert_allclose(
            equivalent_gamma(gamma, covariance, 1), one_step_gamma(gamma, covariance), rtol=1e-9, atol=1e-12
        )

    def test_behind_layer_norm_a_channel_can_lose_in_the_first_step(self, numbers):
        numbers = numbers["decorrelation"]["layer_norm"]
        x = torch.tensor(numbers["x"]).double()[None]
        covariance = torch.cov(F.layer_norm(x, x.shape[1:], eps=0)[0], correction=0)
        assert numbers["covariance"] == [pytest.approx(row) for row in covariance.tolist()]
        assert np.diag(covariance) == pytest.approx([5 / 3, 1 / 3])
        after = equivalent_gamma(np.array(numbers["gamma"]), covariance.numpy(), 1) / numbers["gamma"]
        assert numbers["gamma_ratio"] == pytest.approx(after) and after[0] < 0.53
        assert min(numbers["gamma_ratio_instance_norm"]) > 1

    def test_among_sixteen_channels_losses_hang_on_how_much_the_correlations_differ(self, numbers):
        wide, narrow = (row for row in numbers["decorrelation"]["survey"] if row["size"] == 16)
        assert wide["rho_spread"] > 0.1 > 0.06 > narrow["rho_spread"]
        assert wide["share"]["5"] > 0.8 and narrow["share"]["5"] < 0.05

    @pytest.mark.parametrize("iterations", [1, 3])
    @pytest.mark.parametrize("gamma", [[0.5], [0.5, -0.1, 2.0]])
    def test_without_full_rank_gamma_stays(self, gamma, iterations):
        gamma = np.array(gamma)
        rho = np.ones((gamma.size, gamma.size))
        np.testing.assert_allclose(equivalent_gamma(gamma, rho, iterations), gamma, rtol=1e-12)

    def test_without_sigma_the_recursion_stays_at_the_identity(self):
        root = np.eye(3)
        for _ in range(3):
            root = (3 * root - root @ root @ root) / 2
        np.testing.assert_array_equal(root, np.eye(3))

    @pytest.mark.parametrize(("eigenvalue", "after"), [(0.25, 2.0), (1.0, 1.0), (4.0, -0.5), (6.0, math.inf)])
    def test_without_unit_trace_the_recursion_goes_wrong(self, eigenvalue, after):
        root = 1.0
        for _ in range(12):
            root = (3 * root - root**3 * eigenvalue) / 2 if abs(root) < 1e30 else math.inf
        assert root == pytest.approx(after)

    def test_rounding_leaves_few_steps_whole_and_many_without_a_digit(self, numbers):
        few, more, many = (row["error"] for row in numbers["decorrelation"]["rounding"])
        assert few < 1e-13 and more < 1e-13 and not many < 1


class TestInterferenceGame:
    @given(floor=st.lists(st.floats(-5, 5), min_size=1, max_size=8), budget=st.floats(0.01, 10))
    def test_water_filling_spends_the_budget_at_one_level_above_the_floor(self, floor, budget):
        power = water_filling(np.array(floor), budget)
        used = power > 0
        levels = (power + floor)[used]
        assert power.sum() == pytest.approx(budget) and (power >= 0).all()
        assert np.ptp(levels) < 1e-12
        assert (np.array(floor)[~used] >= levels.max() - 1e-12).all()

    @settings(max_examples=30)
    @given(seed=seeds)
    def test_the_equilibrium_meets_the_kkt_conditions_and_no_player_gains_by_moving(self, seed):
        game = random_game(seed)
        power = equilibrium(game)
        assert kkt_violation(game, power) < 1e-10
        generator = np.random.default_rng(seed)
        settled = rates(game, power)
        for _ in range(5):
            elsewhere = random_power(game, generator)
            for player in range(3):
                moved = power.copy()
                moved[player] = elsewhere[player]
                assert rates(game, moved)[player] <= settled[player] + 1e-12

    @settings(max_examples=30)
    @given(seed=seeds)
    def test_positive_definite_gains_have_one_equilibrium_from_wherever_the_players_start(self, seed):
        game = random_game(seed)
        assert one_equilibrium_for_sure(game.gains)
        start = random_power(game, np.random.default_rng(seed))
        np.testing.assert_allclose(equilibrium(game, start), equilibrium(game), atol=1e-8)

    def test_strong_cross_gains_have_three_equilibria_and_no_more(self):
        assert not one_equilibrium_for_sure(STRONG.gains)
        found = []
        for share in np.linspace(0, 1, 41):
            # The best response of player 2 to this of player 1, and of player 1 to that.
            power = np.array([[share, 1 - share], [0.0, 0.0]])
            power[1] = water_filling((received(STRONG, power) - power)[1], 1.0)
            power[0] = water_filling((received(STRONG, power) - power)[0], 1.0)
            if math.isclose(power[0, 0], share):
                assert kkt_violation(STRONG, power) < 1e-12
                found.append(power.tolist())
        assert found == [[[0, 1], [1, 0]], [[0.5, 0.5], [0.5, 0.5]], [[1, 0], [0, 1]]]

    def test_kkt_conditions_fail_away_from_an_equilibrium_and_with_the_indices_of_g_exchanged(self):
        game = Game(np.array([[1.0, 0.5], [0.1, 1.0]]), np.array([[1.0, 0.5], [0.2, 1.0]]), np.ones(2))
        power = equilibrium(game)
        assert kkt_violation(game, power) < 1e-10
        assert kkt_violation(game, power[:, ::-1]) > 0.1
        assert kkt_violation(game, 0.9 * power) == pytest.approx(0.1)
        assert kkt_violation(Game(game.gains.T, game.noise, game.budget), power) > 0.1

    def test_where_all_positions_are_used_the_equilibrium_is_affine_in_the_noise(self):
        game = Game(GAINS, SCALE[:, None] / H, np.full(3, 4.0))
        power = equilibrium(game)
        assert (power > 0).all()
        np.testing.assert_allclose(power, interior_power(GAINS, game.noise, multipliers(game, power)), atol=1e-12)

    def test_the_multiplier_is_what_a_little_more_budget_is_worth(self):
        def rate(budget: float) -> float:
            game = Game(np.eye(1), np.array([[1.0, 10.0]]), np.array([budget]))
            return rates(game, equilibrium(game))[0]

        game = Game(np.eye(1), np.array([[1.0, 10.0]]), np.ones(1))
        assert equilibrium(game).tolist() == [[1, 0]]
        assert multipliers(game, equilibrium(game))[0] == pytest.approx((rate(1 + 1e-6) - rate(1)) / 1e-6, rel=1e-5)

    @given(h=st.floats(0.01, 5))
    def test_the_expansion_about_minus_1_is_wrong_by_the_square_of_the_distance_and_by_4_where_h_is_positive(self, h):
        for at in (h, -h):
            linear = float(-linear_noise(np.ones(1), np.array([[at]]), -1)[0, 0])
            assert linear == pytest.approx(2 + at)
            assert abs(linear + 1 / at) == pytest.approx((at + 1) ** 2 / abs(at), abs=1e-12)
        assert 2 + h + 1 / h >= 4 - 1e-12

    def test_with_delta_minus_4_the_expansion_is_the_one_about_plus_1(self):
        h = np.linspace(0.2, 3, 8)[None]
        minus, plus = (-linear_noise(np.ones(1), h, about) for about in (-1, 1))
        np.testing.assert_allclose(minus - 4, plus)

    @settings(max_examples=20)
    @given(seed=seeds)
    def test_with_budgets_met_the_expansions_about_minus_1_and_plus_1_are_the_same_proxy(self, seed):
        game = random_game(seed)
        h = np.random.default_rng(seed).uniform(0.3, 2, game.noise.shape)
        scale = np.array([0.1, 0.2, 0.3])
        minus, plus = (equilibrium(Game(game.gains, linear_noise(scale, h, about), game.budget)) for about in (-1, 1))
        np.testing.assert_allclose(minus, plus, atol=1e-8)

    def test_with_budgets_met_the_proxy_is_of_first_order_about_h_1(self):
        def error(spread: float) -> float:
            h = 1 + spread * (H - 1)
            budget = np.full(3, 4.0)
            exact = equilibrium(Game(GAINS, SCALE[:, None] / h, budget))
            return np.abs(equilibrium(Game(GAINS, linear_noise(SCALE, h, -1), budget)) - exact).max()

        assert error(0.1) / error(0.05) == pytest.approx(4, rel=0.1)

    def test_a_rate_without_positive_noise_is_refused(self):
        game = Game(np.eye(1), np.array([[-1.0, 1.0]]), np.ones(1))
        with pytest.raises(ValueError, match=r"interference plus noise is -1\.0 somewhere"):
            rates(game, np.array([[0.5, 0.5]]))
        with pytest.raises(ValueError, match=r"comes down to -0\.5; the marginal rate needs it positive"):
            kkt_violation(game, np.array([[0.5, 0.5]]))

    @pytest.mark.parametrize(
        ("gains", "noise", "budget", "message"),
        [
            (np.eye(2), np.ones((3, 4)), np.ones(2), r"expected \(C, C\), \(C, K\) and \(C,\)"),
            (-np.eye(2), np.ones((2, 4)), np.ones(2), r"gains: expected a positive diagonal, not \[-1\. -1\.\]"),
            (np.eye(2), np.ones((2, 4)), np.array([1.0, 0.0]), r"budget: expected positive numbers, not \[1\. 0\.\]"),
        ],
    )
    def test_data_that_are_no_game_are_named(self, gains, noise, budget, message):
        with pytest.raises(ValueError, match=message):
            Game(gains, noise, budget)

    def test_players_who_do_not_settle_are_an_error(self):
        circle = np.array([[1.0, 3.0, 0.0], [0.0, 1.0, 3.0], [3.0, 0.0, 1.0]])
        game = Game(circle, np.ones((3, 2)), np.ones(3))
        start = np.array([[1.0, 0.0], [0.9, 0.1], [0.2, 0.8]])
        with pytest.raises(ArithmeticError, match="did not settle in 50 sweeps"):
            equilibrium(game, start, max_sweeps=50)


class TestPage:
    def test_the_page_says_what_the_functions_say(self, numbers):
        assert (DOCS / "theory.md").read_text(encoding="utf-8") == page(numbers)

    def test_the_numbers_beside_it_are_todays(self, numbers):
        def same(kept, now):
            if isinstance(now, dict):
                assert kept.keys() == now.keys()
                for key in now.keys() - {"rounding"}:
                    same(kept[key], now[key])
            elif isinstance(now, list):
                assert len(kept) == len(now)
                for one, other in zip(kept, now, strict=True):
                    same(one, other)
            else:
                assert kept == pytest.approx(now, rel=1e-5, abs=1e-9)

        same(json.loads((DOCS / "theory" / "numbers.json").read_text(encoding="utf-8")), numbers)

    def test_the_bounds_it_names_hold(self, numbers):
        assert numbers["relu"]["largest_error_against_quadrature"] < 1e-9
        assert numbers["game"]["kkt_violation"] < 1e-10
        assert max(case["kkt_violation"] for case in numbers["game"]["several"]) == 0

    def test_its_pictures_are_there_and_small(self):
        for name in ("relu_moments", "decorrelation", "interference_game"):
            assert f"(theory/{name}.png)" in (DOCS / "theory.md").read_text(encoding="utf-8")
            assert 0 < (DOCS / "theory" / f"{name}.png").stat().st_size < 200_000

    def test_the_tool_writes_page_numbers_and_pictures(self, numbers, tmp_path, run_tool):
        run_tool(tmp_path)
        assert (tmp_path / "theory.md").read_text(encoding="utf-8") == page(numbers)
        assert json.loads((tmp_path / "theory" / "numbers.json").read_text(encoding="utf-8")) == rounded(numbers)
        assert {path.name for path in (tmp_path / "theory").iterdir()} == {path.name for path in DOCS.glob("theory/*")}

    def test_a_machine_that_rounds_otherwise_writes_the_same_numbers(self, numbers):
        def elsewhere(value):
            if isinstance(value, dict):
                return {key: elsewhere(of_key) for key, of_key in value.items()}
            if isinstance(value, list):
                return [elsewhere(one) for one in value]
            return value * (1 + 2e-15) + 1e-15 if isinstance(value, float) else value

        there, here = rounded(elsewhere(numbers)), rounded(numbers)
        assert there != numbers
        for found in (there, here):
            del found["decorrelation"]["rounding"]  # what rounding does is all that these are
        assert there == here

    def test_a_folder_that_is_not_there_ends_the_tool_with_one_line_and_status_2(self, tmp_path, run_tool, capsys):
        with pytest.raises(SystemExit) as end:
            run_tool(tmp_path / "missing")
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {tmp_path / 'missing'}: expected a folder") and error.count("\n") == 1
