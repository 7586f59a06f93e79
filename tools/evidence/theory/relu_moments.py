"""The mean and the mean square of a normalised and rectified channel, y = max(0, γz + β) with z standard normal.

The closed forms below (paper, Remark 1 and eqs. 9 to 16) hold for every β and for γ of either sign. With u = β / |γ|:

    E[y]  = |γ| (φ(u) + u Φ(u))             E[y²] = γ² ((1 + u²) Φ(u) + u φ(u))
"""
import math
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

# 1 + Erf would lose all digits where a channel is nearly silent, which is the case that matters here.
_erfc = np.vectorize(math.erfc, otypes=[float])


def relu_mean(gamma: ArrayLike, beta: ArrayLike) -> np.ndarray:
    """E[y], in closed form.

    Args:
        gamma: the norm's scale, of either sign or 0.
        beta: the norm's bias, of a shape that fits gamma's.

    Returns:
        float64, of the common shape.
    """
    scale, beta = np.broadcast_arrays(np.abs(np.asarray(gamma, float)), np.asarray(beta, float))
    density, below = _normal(scale, beta)
    return scale * density + beta * below


def relu_mean_square(gamma: ArrayLike, beta: ArrayLike) -> np.ndarray:
    """E[y²], in closed form; arguments and result as for `relu_mean`."""
    scale, beta = np.broadcast_arrays(np.abs(np.asarray(gamma, float)), np.asarray(beta, float))
    density, below = _normal(scale, beta)
    return (scale**2 + beta**2) * below + scale * beta * density


def _normal(scale: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """φ(u) and Φ(u) of the standard normal; at γ = 0 their limits (β = 0 is then multiplied by 0)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.where(scale > 0, beta / scale, np.copysign(np.inf, beta))
    return np.exp(-0.5 * u**2) / math.sqrt(2 * math.pi), 0.5 * _erfc(-u / math.sqrt(2))


def integrated_moment(gamma: float, beta: float, order: int) -> float:
    """E[y^order] by Gauss-Legendre quadrature of its definition, over z where γz + β is positive.

    Args:
        gamma: not 0.
        beta: any; below about -30 |gamma| the result nears the smallest float64.
        order: 1 or 2.
    """
    # z' = z sign(γ) is standard normal too, and t = z' + u is positive exactly where y is.
    u = beta / abs(gamma)
    end = max(u, 0.0) + 12.0
    nodes, weights = _gauss_legendre()
    t = 0.5 * end * (nodes + 1)
    density = np.exp(-0.5 * (t - u) ** 2) / math.sqrt(2 * math.pi)
    return float(0.5 * end * np.sum(weights * (abs(gamma) * t) ** order * density))


@cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(200)
