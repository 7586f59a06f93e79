"""The three pictures of docs/theory.md: curves of the closed forms, and what `numbers.evidence` found."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ce_mm.analysis import save_figure, tidy
from tools.evidence.theory.relu_moments import integrated_moment, relu_mean, relu_mean_square

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_pictures(numbers: dict[str, Any], folder: Path) -> None:
    """Write relu_moments.png, decorrelation.png and interference_game.png.

    Args:
        numbers: of `numbers.evidence`.
        folder: where to; it exists.
    """
    save_figure(_relu_moments(), folder / "relu_moments.png")
    save_figure(_decorrelation(numbers["decorrelation"]), folder / "decorrelation.png")
    save_figure(_interference_game(numbers["game"]), folder / "interference_game.png")


def _panels() -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), dpi=100, layout="constrained")
    return figure, [part.subplots() for part in figure.subfigures(1, 2)]


def _relu_moments() -> Figure:
    figure, (plane, curves) = _panels()
    gamma, beta = np.meshgrid(np.linspace(-0.5, 0.5, 161), np.linspace(-0.5, 0.3, 161))
    with np.errstate(divide="ignore"):
        exponent = np.log10(np.sqrt(relu_mean_square(gamma, beta)))
    filled = plane.contourf(gamma, beta, np.maximum(exponent, -4), levels=np.linspace(-4, 0, 17), cmap="viridis")
    lines = plane.contour(gamma, beta, exponent, levels=[-2], colors="white")
    plane.clabel(lines, fmt={-2: "0.01"})
    plane.axhline(0, color="white", lw=0.8, ls=":")
    plane.figure.colorbar(filled, ax=plane, ticks=range(-4, 1), label="log10 of the root mean square of y")
    plane.set(title="silent channels: small γ, or β far below -|γ|", xlabel="γ", ylabel="β")

    scales = np.geomspace(1e-2, 1, 60)
    for colour, bias in enumerate((0.5, 0.0, -0.02, -0.1, -0.5)):
        curves.plot(scales, relu_mean(scales, bias), color=f"C{colour}", label=f"β = {bias}")
        dots = scales[::6]
        curves.plot(dots, [integrated_moment(g, bias, 1) for g in dots], "o", ms=3.5, color=f"C{colour}")
    curves.set(xscale="log", yscale="log", ylim=(1e-7, 2), xlabel="|γ|", ylabel="E[y]")
    curves.set_title("closed form (lines) and quadrature (dots)")
    tidy(curves)
    return figure


def _decorrelation(numbers: dict[str, Any]) -> Figure:
    figure, (ratios, roots) = _panels()
    steps = [row["iterations"] for row in numbers["steps"]]
    for channel, gamma in enumerate(numbers["gamma"]):
        colour = f"C{channel}"
        of_gamma = [row["gamma_ratio"][channel] for row in numbers["steps"]]
        of_spread = [row["spread_ratio"][channel] for row in numbers["steps"]]
        ratios.plot([0, *steps], [1, *of_gamma], "o-", ms=3.5, color=colour, label=f"γ̂/γ, γ = {gamma:g}")
        ratios.plot([0, *steps], [1, *of_spread], ":", color=colour, label=f"standard deviation / |γ|, γ = {gamma:g}")
    ratios.axhline(1, color="black", lw=0.8)
    ratios.set(title="the counterexample, channel by channel", xlabel="Newton-Schulz steps T", ylim=(-2.5, 8))
    tidy(ratios)

    eigenvalues = np.geomspace(1e-3, 1, 120)
    root = np.ones_like(eigenvalues)
    for step in range(1, 6):
        root = (3 * root - root**3 * eigenvalues) / 2
        roots.plot(eigenvalues, root, color=f"C{step - 1}", label=f"T = {step}")
    roots.plot(eigenvalues, eigenvalues**-0.5, color="black", lw=1, label="σ^(-1/2)")
    roots.axhline(1, color="black", ls=":", lw=1, label="without Σ in the recursion")
    roots.set(xscale="log", yscale="log", xlabel="eigenvalue σ of Σ (unit trace)")
    roots.set_title("P_T lies between I and Σ^(-1/2)")
    tidy(roots)
    return figure


def _interference_game(numbers: dict[str, Any]) -> Figure:
    figure, (noise, errors) = _panels()
    for h in (np.linspace(-3, -0.15, 80), np.linspace(0.15, 3, 80)):
        label = "-1/h, exact" if h[0] < 0 else None
        noise.plot(h, -1 / h, color="black", label=label)
    h = np.linspace(-3, 3, 2)
    noise.plot(h, 2 + h, color="C0", label="2 + h: first order about h = -1")
    noise.plot(h, h - 2, color="C1", ls="--", label="h - 2: first order about h = 1")
    noise.axvspan(-3, 0, color="0.93", lw=0)
    noise.text(-1.9, -4.6, "noise power below zero", fontsize="small", color="0.35")
    noise.set(title="the noise term -N/σ and its expansions", xlabel="h", xlim=(-3, 3), ylim=(-5, 10))
    tidy(noise)

    spread = [row["spread"] for row in numbers["spread"]]
    for colour, (key, label) in enumerate(_PROXIES.items()):
        errors.plot(spread, [row[key] for row in numbers["spread"]], "o-", ms=3.5, color=f"C{colour}", label=label)
    errors.axhline(1, color="black", lw=0.8, ls=":", label="even split of the budgets")
    errors.set(xscale="log", yscale="log", xlabel="standard deviation of ln h", ylabel="error / unevenness of p")
    errors.set(title="powers of the linear proxies, h > 0", xticks=spread, xticklabels=spread)
    errors.minorticks_off()
    tidy(errors)
    return figure


_PROXIES = {
    "about_minus_one": "about h = -1, exact ν",
    "about_plus_one": "about h = 1, exact ν",
    "resolved": "about either, budgets met",
    "best_affine": "one affine map, fitted to all",
}
