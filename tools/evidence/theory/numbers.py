"""What the theory's functions say in the cases of docs/theory.md: numbers first, page and pictures from them.

The counterexamples are small and written out. Two things are drawn at random, with fixed seeds: how often γ̂ shrinks in
some channel, and how far the game's linear proxy is from the equilibrium.
"""
import math
from typing import Any

import numpy as np

from tools.evidence.theory import batch_and_instance, decorrelation, interference_game, relu_moments
from tools.evidence.theory.interference_game import Game

#: Three channels of which the weakest loses by decorrelation: their γ and ρ.
GAMMA = np.array([0.75, 0.1, 1.0])
RHO = np.array([[1.0, 0.6, 0.3], [0.6, 1.0, 0.9], [0.3, 0.9, 1.0]])

#: A small game with one equilibrium: gains, σ, and h (of three players at four positions).
GAINS = np.array([[1.0, 0.3, 0.1], [0.3, 1.0, 0.2], [0.1, 0.2, 1.0]])
SCALE = np.array([0.1, 0.2, 0.3])
H = np.array([[1.0, 0.5, 2.0, 1.25], [0.5, 1.0, 1.0, 2.0], [2.0, 0.8, 0.5, 1.0]])

#: Two players who disturb each other twice as much as they hear themselves, at two equal positions.
STRONG = Game(np.array([[1.0, 2.0], [2.0, 1.0]]), np.ones((2, 2)), np.ones(2))


def evidence() -> dict[str, Any]:
    """All numbers of the page, as JSON has them."""
    return {
        "relu": _relu(),
        "statistics": _statistics(),
        "decorrelation": _decorrelation(),
        "game": _game(),
    }


def _relu() -> dict[str, Any]:
    cases = [(1.0, 0.0), (0.1, 0.0), (0.01, 0.0), (0.1, -0.1), (-0.1, -0.1), (0.1, -0.3), (1.0, -4.0), (0.01, 0.5)]
    worst = 0.0
    for gamma in (-2.0, -0.5, 0.01, 1.0, 3.0):
        for u in np.linspace(-10, 10, 41):
            beta = u * abs(gamma)
            for order, closed in ((1, relu_moments.relu_mean), (2, relu_moments.relu_mean_square)):
                integral = relu_moments.integrated_moment(gamma, beta, order)
                worst = max(worst, abs(float(closed(gamma, beta)) / integral - 1))
    # The mean square for γ < 0, written with Erf(β / (√2 γ)), with either sign before it.
    gamma = beta = -1.0
    gauss = -gamma * beta * math.exp(-(beta**2) / (2 * gamma**2)) / math.sqrt(2 * math.pi)
    erf = math.erf(beta / (math.sqrt(2) * gamma))
    return {
        "cases": [
            {
                "gamma": g,
                "beta": b,
                "mean": float(relu_moments.relu_mean(g, b)),
                "rms": math.sqrt(relu_moments.relu_mean_square(g, b)),
            }
            for g, b in cases
        ],
        "largest_error_against_quadrature": worst,
        "sign_of_erf": {
            "gamma": gamma,
            "beta": beta,
            "quadrature": relu_moments.integrated_moment(gamma, beta, 2),
            "minus": gauss + (gamma**2 + beta**2) / 2 * (1 - erf),
            "plus": gauss + (gamma**2 + beta**2) / 2 * (1 + erf),
        },
    }


def _statistics() -> dict[str, Any]:
    # Two samples, two channels, two positions.
    x = np.array([[[0.0, 2.0], [0.0, 4.0]], [[4.0, 6.0], [2.0, -2.0]]])[:, :, None]
    gamma, beta = np.array([2.0, 0.5]), np.array([1.0, -1.0])
    mean, var = batch_and_instance.instance_statistics(x)
    batch_mean, batch_var = batch_and_instance.batch_from_instance(mean, var)
    rho = batch_and_instance.correlation(x)
    normalised = (gamma / np.sqrt(batch_var))[:, None, None] * (x - batch_mean[:, None, None]) + beta[:, None, None]
    rows = np.moveaxis(normalised, 1, 0).reshape(2, -1)
    return {
        "x": x[:, :, 0].tolist(),
        "gamma": gamma.tolist(),
        "beta": beta.tolist(),
        "instance_mean": mean.tolist(),
        "instance_var": var.tolist(),
        "batch_mean": batch_mean.tolist(),
        "batch_var": batch_var.tolist(),
        "mean_of_instance_var": var.mean(axis=0).tolist(),
        "normalised_instance_var": batch_and_instance.normalised_instance_variance(var, batch_var, gamma).tolist(),
        "mean_square_about_beta": np.mean((normalised - beta[:, None, None]) ** 2, axis=(2, 3)).tolist(),
        "rho": rho.tolist(),
        "covariance": batch_and_instance.normalised_covariance(gamma, rho).tolist(),
        "covariance_with_x_tilde": (np.outer(gamma, gamma) * (rows @ rows.T / rows.shape[1])).tolist(),
    }


def _decorrelation() -> dict[str, Any]:
    sigma = decorrelation.unit_trace_covariance(GAMMA, RHO)
    limit = decorrelation.inverse_root(sigma)
    steps = [
        {
            "iterations": iterations,
            "gamma_ratio": (decorrelation.equivalent_gamma(GAMMA, RHO, iterations) / GAMMA).tolist(),
            "spread_ratio": (decorrelation.channel_spreads(GAMMA, RHO, iterations) / GAMMA).tolist(),
        }
        for iterations in range(1, 9)
    ]
    return {
        "gamma": GAMMA.tolist(),
        "rho": RHO.tolist(),
        "eigenvalues": np.linalg.eigvalsh(sigma).tolist(),
        "steps": steps,
        "limit": {
            "gamma_ratio": (limit @ GAMMA / GAMMA).tolist(),
            "spread_ratio": (np.linalg.norm(GAMMA) / GAMMA).tolist(),
        },
        "survey": [_share_with_a_loss(*draw) for draw in ((2, 4), (4, 8), (16, 32), (2, 256), (4, 256), (16, 256))],
        "layer_norm": _layer_norm(),
        "rounding": [{"iterations": n, "error": _rounding_error(sigma, n)} for n in (3, 5, 14)],
    }


def _share_with_a_loss(size: int, positions: int, groups: int = 2000) -> dict[str, Any]:
    """In how many of many random groups γ̂ is smaller than γ in some channel.

    At each position a channel is noise of its own plus a noise that all share, so two channels' true correlation is a
    half; ρ has what is found of it at so many positions: the fewer, the more its entries differ.
    """
    generator = np.random.default_rng(0)
    gamma = generator.uniform(0, 1, (groups, size))
    rows = generator.standard_normal((groups, size, positions)) + generator.standard_normal((groups, 1, positions))
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    rho = rows @ np.swapaxes(rows, 1, 2)
    between = rho[:, *np.triu_indices(size, 1)]
    shares = {}
    for iterations in (1, 2, 3, 5):
        loses = np.abs(decorrelation.equivalent_gamma(gamma, rho, iterations)) < np.abs(gamma)
        shares[str(iterations)] = float(loses.any(axis=1).mean())
    return {
        "size": size,
        "positions": positions,
        "groups": groups,
        "rho_mean": float(between.mean()),
        "rho_spread": float(between.std()),
        "share": shares,
    }


def _layer_norm() -> dict[str, Any]:
    # One sample, two channels, four positions; the mean of each channel is 0. With one sample IN does what BN does.
    x = np.array([[3.0, 1.0, -1.0, -3.0], [1.0, 1.0, -1.0, -1.0]])
    gamma = np.array([0.1, 1.0])
    covariance = np.cov((x - x.mean()) / x.std(), bias=True)
    return {
        "x": x.tolist(),
        "gamma": gamma.tolist(),
        "covariance": covariance.tolist(),
        "gamma_ratio": (decorrelation.one_step_gamma(gamma, covariance) / gamma).tolist(),
        "gamma_ratio_instance_norm": (decorrelation.one_step_gamma(gamma, np.corrcoef(x)) / gamma).tolist(),
    }


def _rounding_error(sigma: np.ndarray, iterations: int) -> float:
    """The largest error of the recursion in float64, as a share of P_T's largest entry."""
    values, vectors = np.linalg.eigh(sigma)
    roots = np.ones_like(values)
    for _ in range(iterations):
        roots = (3 * roots - roots**3 * values) / 2
    exact = vectors * roots @ vectors.T
    return float(np.abs(decorrelation.whitening(sigma, iterations) - exact).max() / np.abs(exact).max())


def _game() -> dict[str, Any]:
    players, positions = H.shape
    game = Game(GAINS, SCALE[:, None] / H, np.full(players, float(positions)))
    power = interference_game.equilibrium(game)
    nu = interference_game.multipliers(game, power)
    lopsided = Game(np.array([[1.0, 0.5], [0.1, 1.0]]), np.array([[1.0, 0.5], [0.2, 1.0]]), np.ones(2))
    settled = interference_game.equilibrium(lopsided)
    apart = np.array([[1.0, 0.0], [0.0, 1.0]])
    return {
        "gains": GAINS.tolist(),
        "scale": SCALE.tolist(),
        "h": H.tolist(),
        "power": power.tolist(),
        "nu": nu.tolist(),
        "kkt_violation": interference_game.kkt_violation(game, power),
        "proxy": interference_game.interior_power(GAINS, interference_game.linear_noise(SCALE, H, -1), nu).tolist(),
        "resolved": interference_game.equilibrium(
            Game(GAINS, interference_game.linear_noise(SCALE, H, -1), game.budget)
        ).tolist(),
        "several": [
            {
                "power": start.tolist(),
                "kkt_violation": interference_game.kkt_violation(STRONG, start),
                "rates": interference_game.rates(STRONG, start).tolist(),
            }
            for start in (apart, apart[::-1], np.full((2, 2), 0.5))
        ],
        "swapped_index": {
            "gains": lopsided.gains.tolist(),
            "noise": lopsided.noise.tolist(),
            "power": settled.tolist(),
            "kkt_violation": interference_game.kkt_violation(lopsided, settled),
            "kkt_violation_swapped": interference_game.kkt_violation(
                Game(lopsided.gains.T, lopsided.noise, lopsided.budget), settled
            ),
        },
        "expansion": [_expansion(h) for h in (-2.0, -1.5, -1.0, -0.5, -0.1, 0.1, 0.5, 1.0, 2.0)],
        # Where the expansion's relative error (h + 1)² stays under a tenth, for a standard normal h.
        "share_of_h_within_a_tenth": _normal_cdf(-1 + math.sqrt(0.1)) - _normal_cdf(-1 - math.sqrt(0.1)),
        "spread": [_proxy_errors(spread) for spread in (0.05, 0.1, 0.2, 0.4, 0.8)],
    }


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _expansion(h: float) -> dict[str, float]:
    return {"h": h, "exact": -1 / h, "linear": 2 + h, "relative_error": (h + 1) ** 2}


def _proxy_errors(spread: float, draws: int = 20, positions: int = 16) -> dict[str, float]:
    """The proxy beside the equilibrium where h is log-normal about 1, over many games.

    Errors are root sums of squares over that of the equilibria minus an even split of the budgets: at 1, a proxy says
    no more than "split evenly". ``best_affine`` is one affine map of h, fitted to the equilibria by least squares.
    """
    generator = np.random.default_rng(0)
    budget = np.full(len(GAINS), float(positions))
    games = []
    for _ in range(draws):
        h = np.exp(spread * generator.standard_normal((len(GAINS), positions)))
        power = interference_game.equilibrium(Game(GAINS, SCALE[:, None] / h, budget))
        nu = interference_game.multipliers(Game(GAINS, SCALE[:, None] / h, budget), power)
        linear = interference_game.linear_noise(SCALE, h, -1)
        about_one = interference_game.linear_noise(SCALE, h, 1)
        minus = np.maximum(0, interference_game.interior_power(GAINS, linear, nu))
        plus = np.maximum(0, interference_game.interior_power(GAINS, about_one, nu))
        resolved = interference_game.equilibrium(Game(GAINS, linear, budget))
        games.append((h, power, minus, plus, resolved))
    h, power, minus, plus, resolved = (np.concatenate(parts, axis=1) for parts in zip(*games, strict=True))
    terms = np.vstack([h, np.ones(h.shape[1])]).T
    fit = terms @ np.linalg.lstsq(terms, power.T, rcond=None)[0]
    uneven = np.linalg.norm(power - 1)
    return {
        "spread": spread,
        "about_minus_one_of_power": float(np.linalg.norm(minus - power) / np.linalg.norm(power)),
        "about_minus_one": float(np.linalg.norm(minus - power) / uneven),
        "about_plus_one": float(np.linalg.norm(plus - power) / uneven),
        "resolved": float(np.linalg.norm(resolved - power) / uneven),
        "best_affine": float(np.linalg.norm(fit.T - power) / uneven),
    }
