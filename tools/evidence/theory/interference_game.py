"""The Gaussian interference game that the paper likens CE to, its equilibria, and the linear proxy (eqs. 25 to 31).

Each channel c of a layer is a player that spreads a budget P_c over K positions, to raise its rate against the noise
and the interference of the others:

    max Σ_k ln(1 + g_cc p_ck / (Σ_(d≠c) g_cd p_dk + N_ck))    over    p_ck ≥ 0,  Σ_k p_ck ≤ P_c

The best response is water-filling: L_ck = (Σ_d g_cd p_dk + N_ck) / g_cc, the sum over all d, is one level 1/ν_c where
p_ck > 0, and not below it elsewhere. So it is the Euclidean projection of p_c - L_c onto the powers that spend the
budget, the equilibria are those of a quadratic game, and there is just one where G + Gᵀ is positive definite.
"""
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Game:
    """The data of the game.

    Attributes:
        gains: G (C, C); row c has what player c receives from each player, its own on the diagonal, positive.
        noise: N (C, K). A rate has a meaning only where interference and noise together are positive.
        budget: P (C,), positive.
    """

    gains: np.ndarray
    noise: np.ndarray
    budget: np.ndarray

    def __post_init__(self):
        players = len(self.budget)
        if self.gains.shape != (players, players) or self.noise.ndim != 2 or len(self.noise) != players:
            raise ValueError(
                f"gains {self.gains.shape}, noise {self.noise.shape} and budget {self.budget.shape} do not fit: "
                "expected (C, C), (C, K) and (C,)"
            )
        if not (np.diag(self.gains) > 0).all():
            raise ValueError(f"gains: expected a positive diagonal, not {np.diag(self.gains)}")
        if not (self.budget > 0).all():
            raise ValueError(f"budget: expected positive numbers, not {self.budget}")


def water_filling(floor: np.ndarray, budget: float) -> np.ndarray:
    """Pour ``budget`` over positions of uneven depth: max(0, level - floor), whose sum is the budget.

    Args:
        floor: (K,).
        budget: positive.

    Returns:
        (K,).
    """
    rising = np.sort(floor)
    levels = (budget + np.cumsum(rising)) / np.arange(1, len(floor) + 1)
    # With the m lowest positions in use, the level must stand above all of them; the largest such m is the answer.
    level = levels[levels > rising][-1]
    return np.maximum(0.0, level - floor)


def received(game: Game, power: np.ndarray) -> np.ndarray:
    """L (C, K): all that a player receives at a position, over its own gain; at most 1/ν_c where it sends."""
    return (game.gains @ power + game.noise) / np.diag(game.gains)[:, None]


def equilibrium(
    game: Game, start: np.ndarray | None = None, tolerance: float = 1e-13, max_sweeps: int = 10_000
) -> np.ndarray:
    """A Nash equilibrium: the players respond in turn until none of them moves.

    Args:
        game: with symmetric positive definite gains this always settles, in the only equilibrium.
        start: (C, K), where the players begin; by default each spreads its budget evenly.
        tolerance: the largest move of the last sweep, as a share of the largest budget.
        max_sweeps: when to give up.

    Returns:
        power (C, K).

    Raises:
        ArithmeticError: the responses did not settle.
    """
    players, positions = game.noise.shape
    power = np.tile(game.budget[:, None] / positions, positions) if start is None else start.astype(float)
    for _ in range(max_sweeps):
        before = power.copy()
        for c in range(players):
            power[c] = water_filling(received(game, power)[c] - power[c], game.budget[c])
        if np.abs(power - before).max() <= tolerance * game.budget.max():
            return power
    raise ArithmeticError(
        f"the best responses did not settle in {max_sweeps} sweeps; they always do for symmetric positive definite "
        f"gains, and these have the eigenvalues {np.linalg.eigvals(game.gains)}"
    )


def one_equilibrium_for_sure(gains: np.ndarray) -> bool:
    """Whether G + Gᵀ is positive definite, which is enough for a single equilibrium whatever noise and budget."""
    return bool(np.linalg.eigvalsh(gains + gains.T)[0] > 0)


def rates(game: Game, power: np.ndarray) -> np.ndarray:
    """What each player gets, (C,).

    Raises:
        ValueError: interference and noise of some player are not positive together.
    """
    own = np.diag(game.gains)[:, None] * power
    disturbance = game.gains @ power - own + game.noise
    if not (disturbance > 0).all():
        raise ValueError(f"interference plus noise is {disturbance.min()} somewhere; a rate needs it positive")
    return np.log1p(own / disturbance).sum(axis=1)


def kkt_violation(game: Game, power: np.ndarray) -> float:
    """How far ``power`` is from the KKT conditions of all players; 0 at an equilibrium.

    With ν_c = max_k 1/L_ck these are: p ≥ 0; Σ_k p_ck = P_c (more power is always worth more); p_ck (ν_c - 1/L_ck) = 0.
    The largest failure is returned, with p counted in budgets and 1/L in ν.

    Raises:
        ValueError: L is not positive.
    """
    level = received(game, power)
    if not (level > 0).all():
        raise ValueError(f"what is received comes down to {level.min()}; the marginal rate needs it positive")
    share = power / game.budget[:, None]
    short_of_best = 1 - level.min(axis=1, keepdims=True) / level
    return float(max(0.0, -share.min(), np.abs(share.sum(axis=1) - 1).max(), np.abs(share * short_of_best).max()))


def multipliers(game: Game, power: np.ndarray) -> np.ndarray:
    """ν (C,), the worth of a little more budget to each player at an equilibrium."""
    return 1 / received(game, power).min(axis=1)


def interior_power(gains: np.ndarray, noise: np.ndarray, nu: np.ndarray) -> np.ndarray:
    """The equilibrium in which all players use all positions: G⁻¹ (diag(G) / ν - N).

    Args:
        gains: (C, C).
        noise: (C, K).
        nu: (C,), see `multipliers`.

    Returns:
        (C, K); an equilibrium only where none of it is negative.
    """
    return np.linalg.solve(gains, (np.diag(gains) / nu)[:, None] - noise)


def linear_noise(scale: np.ndarray, h: np.ndarray, about: float) -> np.ndarray:
    """The noise N = σ / h to first order in h about a point a: σ (2/a - h/a²).

    About a = -1, as in eq. 31, this is -σ (2 + h), and `interior_power` is then affine in h, as CE is in x̄.

    Args:
        scale: σ (C,).
        h: (C, K).
        about: a, not 0.

    Returns:
        (C, K).
    """
    return scale[:, None] * (2 / about - h / about**2)
