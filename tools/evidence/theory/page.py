"""docs/theory.md: what the paper claims, what holds, and the counterexamples, with every number from the evidence."""
import json
from pathlib import Path
from typing import Any

from ce_mm.files import check_folder, replacing
from tools.evidence import pages
from tools.evidence.theory.numbers import evidence
from tools.evidence.theory.pictures import draw_pictures


def write_theory(docs: Path) -> None:
    """Work out the evidence and write it: theory.md, and beside it theory/ with numbers.json and three pictures.

    Args:
        docs: the folder of the documentation; it exists.

    Raises:
        ValueError: ``docs`` is no folder, or not for writing.
    """
    if not docs.is_dir():
        raise ValueError(f"{docs}: expected a folder to write theory.md and theory/ into; make it first")
    folder = docs / "theory"
    check_folder(docs, ["theory.md"])
    check_folder(folder, ["numbers.json"])
    numbers = evidence()
    folder.mkdir(exist_ok=True)
    draw_pictures(numbers, folder)
    with replacing(folder / "numbers.json") as unfinished:
        unfinished.write_text(json.dumps(rounded(numbers), indent=1) + "\n", encoding="utf-8")
    pages.write(docs, "theory", page(numbers))


def rounded(numbers: Any) -> Any:
    """Numbers to six digits and to 1e-10, in lists and dicts of them: what lies beyond is each machine's rounding."""
    if isinstance(numbers, dict):
        return {name: rounded(value) for name, value in numbers.items()}
    if isinstance(numbers, list):
        return [rounded(value) for value in numbers]
    return float(f"{round(numbers, 10):.6g}") if isinstance(numbers, float) else numbers


def page(numbers: dict[str, Any]) -> str:
    """The page in Markdown, from the numbers of `numbers.evidence`."""
    return _PAGE.format(
        **_relu(numbers["relu"]),
        **_statistics(numbers["statistics"]),
        **_decorrelation(numbers["decorrelation"]),
        **_game(numbers["game"]),
    )


def _relu(numbers: dict[str, Any]) -> dict[str, str]:
    mean = {(row["gamma"], row["beta"]): row["mean"] for row in numbers["cases"]}
    rows = ((f"{r['gamma']:g}", f"{r['beta']:g}", f"{r['mean']:.3g}", f"{r['rms']:.3g}") for r in numbers["cases"])
    return {
        "relu_table": pages.table(("γ", "β", "E[y]", "√E[y²]"), rows, words=()),
        "positive": f"{mean[0.01, 0.5]:.3f}",
        "silent": f"{mean[1.0, -4.0]:.1e}",
        "minus": f"{numbers['sign_of_erf']['minus']:.4f}",
        "plus": f"{numbers['sign_of_erf']['plus']:.4f}",
    }


def _statistics(numbers: dict[str, Any]) -> dict[str, str]:
    right, wrong = numbers["covariance"], numbers["covariance_with_x_tilde"]
    return {
        "ivar": f"{numbers['mean_of_instance_var'][0]:g}",
        "bvar": f"{numbers['batch_var'][0]:g}",
        "nvar": f"{numbers['normalised_instance_var'][0][0]:g}",
        "about": f"{numbers['mean_square_about_beta'][0][0]:g}",
        "cov": f"({right[0][0]:g}, {right[0][1]:g}; {right[1][0]:g}, {right[1][1]:g})",
        "cov_tilde": f"({wrong[0][0]:g}, {wrong[0][1]:g}; {wrong[1][0]:g}, {wrong[1][1]:.4f})",
    }


def _decorrelation(numbers: dict[str, Any]) -> dict[str, str]:
    after = {str(row["iterations"]): row for row in numbers["steps"]}
    shown = {t: after[t] for t in "1235"} | {"∞": numbers["limit"]}
    return {
        "loss": f"{1 - after['3']['gamma_ratio'][1]:.0%}",
        "growth": f"{after['3']['spread_ratio'][1]:.2f}",
        "step_table": pages.table(
            ("T", "γ̂ / γ", "standard deviation after / before"),
            ((t, _list(row["gamma_ratio"]), _list(row["spread_ratio"])) for t, row in shown.items()),
            words=(),
        ),
        "survey_table": pages.table(
            ("channels in a group", "positions", "ρ_cd drawn", "T = 1", "T = 2", "T = 3", "T = 5"),
            (
                (
                    str(r["size"]),
                    str(r["positions"]),
                    f"{r['rho_mean']:.2f} ± {r['rho_spread']:.2f}",
                    *(f"{share:.1%}" for share in r["share"].values()),
                )
                for r in numbers["survey"]
            ),
            words=(),
        ),
        "layer_norm_loss": f"{1 - numbers['layer_norm']['gamma_ratio'][0]:.0%}",
        "instance_norm_gain": f"{numbers['layer_norm']['gamma_ratio_instance_norm'][0] - 1:.0%}",
    }


def _game(numbers: dict[str, Any]) -> dict[str, str]:
    apart, _, even = numbers["several"]
    least, most = numbers["spread"][0], numbers["spread"][-1]
    return {
        "swapped": f"{numbers['swapped_index']['kkt_violation_swapped']:.2f}",
        "apart": f"{apart['rates'][0]:.3f}",
        "even": f"{even['rates'][0]:.3f}",
        "within": f"{numbers['share_of_h_within_a_tenth']:.0%}",
        "least": f"{least['about_minus_one_of_power']:.0%}",
        "most": f"{most['about_minus_one_of_power']:.0%}",
        "widest": f"{most['spread']:g}",
        "resolved": f"{most['resolved']:.2f}",
        "fitted": f"{most['best_affine']:.2f}",
        "power_table": pages.table(
            ("player", "equilibrium", "proxy, exact ν", "proxy, budgets met"),
            (
                (str(player), *map(_list, powers))
                for player, powers in enumerate(
                    zip(numbers["power"], numbers["proxy"], numbers["resolved"], strict=True), start=1
                )
            ),
            words=(),
        ),
        "expansion_table": pages.table(
            ("h", "-1/h", "2 + h", "relative error"),
            (
                (f"{r['h']:g}", f"{r['exact']:.3g}", f"{r['linear']:g}", f"{r['relative_error']:.0%}")
                for r in numbers["expansion"]
            ),
            words=(),
        ),
        "spread_table": pages.table(
            ("s", "about -1, exact ν", "about +1, exact ν", "about either, budgets met", "one affine map, fitted"),
            (
                (
                    f"{r['spread']:g}",
                    *(f"{r[key]:.2g}" for key in ("about_minus_one", "about_plus_one", "resolved", "best_affine")),
                )
                for r in numbers["spread"]
            ),
            words=(),
        ),
    }


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


_PAGE = """# The paper's theory, checked

What the CE paper ([Shao et al., ICML 2020](https://arxiv.org/abs/2003.00214)) proves or sketches about channels, as
functions that can be called (`tools.evidence.theory`): what holds, where it fails, and by how much. The printed text
has misprints; each equation stands here in the form that holds, so that this page can be read alone. ε is 0 where it
is not named. The page, its pictures and [its numbers](theory/numbers.json) are written by

```bash
python -m tools.evidence.theory
```

and `tests/evidence/test_theory.py` holds the page against the functions, and the functions against PyTorch, quadrature
and each other. Numbers are written to six digits, so that a machine which rounds otherwise writes the same, but for
`rounding`, which records what rounding does; the bytes of a picture depend on the machine and on Matplotlib's version.

| paper | as printed | what holds |
|---|---|---|
| eqs. 10, 12 | assume β ≤ 0, and say so; 15 and 16 need it too | every β: [section 1](#1-why-channels-fall-silent) |
| eq. 16 | plus before Erf, with γ < 0 | with Erf(β / (√2 γ)): plus for γ > 0, minus for γ < 0 |
| eq. 18 | the mean over samples has index i | n; the rest is right: [section 2](#2-statistics-of-batch-and-instance) |
| eq. 19 | first line: division by σ²_c | by its root; the result is right, σ̃²_nc = γ_c² σ²_nc / (σ²_c + ε) |
| below eq. 20 | Σ in vector form has x̃; eq. 20 itself is right | cov(x̃) = γγᵀ ⊙ mean(x̄ x̄ᵀ) |
| below eq. 20 | ρ_cd: of x̃, "j-th column" | of x̄ (x̃'s has the sign of γ_c γ_d besides), column d |
| above eq. 22 | the recursion lacks Σ | P_k = (3 P_(k-1) - P_(k-1)³ Σ) / 2: [section 3](#3-proposition-1) |
| eq. 22 | one line stands twice | it is right |
| Prop. 1(1) | premise: Σ_k = Σ^(-1/2) for all k | true of no Σ of unit trace with two or more channels |
| Prop. 1(1) | then all γ̂_c are larger than γ_c | after one step, not after three; standard deviations always grow |
| below eq. 23 | IN and LN keep proposition 1 | IN keeps all that holds; LN keeps (2), of (1) not even the first step |
| Prop. 1(2) | x̃ on both sides | x̃ = Diag(γ) x̄ + β |
| eq. 24 | its first > | ≥, an equality along the top eigenvector; the second is strict, so (2) stands |
| eqs. 25, 28 | sums up to h | up to H |
| below eq. 25 | just one equilibrium | for certain g: [section 4](#4-the-gaussian-interference-game) |
| eq. 29 | p_cij in the sum over d | p_dij |
| eq. 31 | (2 + δ) σ, δ left open | δ = 0: expansion about h = -1, where noise is negative; δ = -4: about h = 1 |
| section E | pooling costs CHW | NCHW |
| section F | ELU+ReLU | BN+ELU |
| fig. 7, caption of (a) | BN+ReLU twice | BN+LReLU once |

## 1. Why channels fall silent

**Claim** (Remark 1, eqs. 9 to 16). Behind a norm and ReLU, y = max(0, γz + β) with z standard normal; y vanishes in
mean and mean square for β ≤ 0 as γ goes to 0.

**What holds**, for every β and for γ of either sign, with u = β / |γ|, the normal density φ and distribution Φ:

    E[y]  = |γ| (φ(u) + u Φ(u))
    E[y²] = γ² ((1 + u²) Φ(u) + u φ(u))

At γ = 0 they are max(0, β) and max(0, β)². They agree with numerical integration to a relative 1e-9 for |u| ≤ 10. For
β ≤ 0 they stay below their values at β = 0, E[y] ≤ |γ| / √(2π) and E[y²] ≤ γ² / 2, which gives the remark.

{relu_table}

* **β ≤ 0 is needed**, and the paper assumes it. At β = 0.5 and γ = 0.01 the mean is {positive}: its limit is β, not 0.
* **A small γ is not needed.** With γ = 1 and β = -4 the mean is {silent}. A count of inhibited channels from γ alone
  misses such channels; a count from the outputs does not.
* **At β = 0 the decay is slow**: E[y] and √E[y²] are proportional to |γ|. For β < 0 it is faster than any power of γ.
* **The sign in eq. 16.** For γ < 0 the mean square is `-γβ/√(2π) exp(-β²/(2γ²)) + (γ² + β²)/2 (1 - Erf(β/(√2 γ)))`.
  At γ = β = -1 this is {minus}, as is the integral; with a plus before Erf it would be {plus}, above the bound γ²/2.
  (In floating point take Erfc: where a channel is silent, 1 - Erf has no digits left.)

![Left: magnitude over γ and β; right: the mean against γ for five β](theory/relu_moments.png)

## 2. Statistics of batch and instance

**Claim** (eqs. 17 to 20). BN's statistics, the instance variances behind it, and the covariance of its output follow
from the statistics of single samples.

**What holds**, with the means μ_nc and variances σ²_nc of a sample's channel over H·W:

    μ_c     = mean_n μ_nc
    σ²_c    = mean_n σ²_nc + var_n μ_nc
    σ̃²_nc   = γ_c² σ²_nc / (σ²_c + ε)               whatever β
    cov(x̃)  = γγᵀ ⊙ ρ,   ρ = mean(x̄ x̄ᵀ)             whatever β

So the mean of σ̃²_nc over n is γ_c² (1 - var_n μ_nc / σ²_c), below γ_c² wherever samples differ in their means.

**Counterexamples**: two samples and two channels of two positions. Channel 1 is (0, 2) and (4, 6), channel 2 is (0, 4)
and (2, -2); γ = (2, 0.5), β = (1, -1).

* Both instance variances of channel 1 are {ivar}; BN's variance is {bvar}, not their mean.
* σ̃² of channel 1 is {nvar} in both samples. It is taken about the sample's own mean; about β it would be {about}.
* The covariance of x̃ is {cov}, as eq. 20 has it. By the vector form below it, with x̃ for x̄, γ
  would count twice and β would enter: {cov_tilde}.

## 3. Proposition 1

**Claim.** Let Σ be γγᵀ ⊙ ρ over its trace, ρ of full rank, P_k the Newton-Schulz steps towards Σ^(-1/2), and γ̂ = P_T γ
what stands for γ behind batch decorrelation: the sum of row c of the map P_T Diag(γ), what y_c gains where all x̄ rise
by 1. (1) If P_k = Σ^(-1/2) for k = 1, ..., T, then |γ̂_c| > |γ_c| for every channel. (2) ‖Σ^(-1/2) x̃‖ > ‖x̃‖.

**The premise of (1) is empty.** For k = 1 it asks (3 - σ) / 2 = σ^(-1/2) of each eigenvalue σ of Σ, that is
(√σ - 1)² (√σ + 2) = 0, so all are 1. Unit trace leaves that to one channel alone, and there γ̂ = γ. With two or more the
smallest is at most 1/2, and there P_1 is short of Σ^(-1/2) by at least √2 - 5/4. The proof is in truth about one step.

**What holds** without it, in a group of at least two channels, none with γ_c = 0:

* **Unit trace** puts the eigenvalues of Σ into (0, 1). There the scalar recursion p = (3p - p³σ) / 2 climbs from 1
  towards σ^(-1/2), so for every T ≥ 1 the matrix P_T lies strictly between I and Σ^(-1/2).
* **Norms grow for every T**: ‖P_T v‖ > ‖v‖ for every v ≠ 0, so ‖γ̂‖ > ‖γ‖. For Σ^(-1/2) that is (2), by eq. 24 as
  xᵀ Σ⁻¹ x ≥ xᵀ x / λ₁ > xᵀ x, with the largest eigenvalue λ₁ < 1.
* **One step** has a closed form: γ̂_c = γ_c (3 - r_c) / 2 with r_c = Σ_d γ_d² ρ_cd / ‖γ‖², a weighted mean of
  correlations of which all but one are below 1. So the conclusion of (1) holds channel by channel, and |γ̂_c| < 2 |γ_c|.
  The chain above eq. 23, |3 - r_c| ≥ 3 - |r_c| ≥ 2, is right; full rank makes the last ≥ a >.
* **Each standard deviation grows for every T.** P_T commutes with Σ and P_T² lies above I, so channel c's variance
  behind BD, ‖γ‖² (P_T² Σ)_cc, is above γ_c². It tends to ‖γ‖² for all channels alike, an equilibrium. For the same
  reason (P_T)_cc > 1, what a channel keeps of itself. These two are what to use in place of (1).
* **Other norms.** Behind IN each channel has variance 1 too: all of this holds, with ρ the mean over samples. LN (over
  C, H, W; GN alike) gives the channels one variance together, so Σ is γγᵀ ⊙ cov(x̄) over its trace. Norms and standard
  deviations still grow for every T, and (2) holds; with the vector of x̃'s standard deviations in place of γ, one step
  enlarges every entry. But γ̂ itself may shrink at once. Take one sample of the channels (3, 1, -1, -3) and
  (1, 1, -1, -1), γ = (0.1, 1): behind LN their variances are 5/3 and 1/3, and in one step channel 1 loses
  {layer_norm_loss} of its γ; behind IN it gains {instance_norm_gain}.

**Counterexample** to the conclusion of (1) for T = 3, the default: γ = (0.75, 0.1, 1), ρ_12 = 0.6, ρ_13 = 0.3,
ρ_23 = 0.9. The weakest of the three loses {loss} of its γ, while its standard deviation grows by a factor of {growth}.
With more steps its γ̂ passes through 0 and changes sign.

{step_table}

How often some channel of a group loses depends on what is drawn. Here γ is uniform in (0, 1), 2000 groups a row. A
channel is a normal noise of its own plus one of the same variance that all share, so the true correlation is 1/2; ρ has
the cosines of the channels over some positions, twice as many as channels (upper rows) or 256 (lower rows). The column
ρ_cd has mean ± standard deviation of its entries.

{survey_table}

In a small group some channel often loses, however alike the correlations; among 16, within five steps, it takes
correlations that differ.

* **Full rank is needed**: with identical channels (ρ all ones), or one channel alone, γ̂ = γ for every T.
* **Σ in the recursion is needed** (above eq. 22): P_k = (3 P_(k-1) - P_(k-1)³) / 2 stays at I.
* **The unit trace is needed**: for an eigenvalue of 4 the recursion stays at -1/2, the wrong sign; for 6 it diverges.
* **Few steps are wanted**: rounding errors grow with T. In float64, on the counterexample, P_T is good to 1e-13 up to
  T = 5 and has no digit left at T = 14.

![Left: the counterexample over T; right: the scalar recursion against the inverse root](theory/decorrelation.png)

## 4. The Gaussian interference game

**Claim** (eqs. 25 to 31). Channels are players in a game that has an equilibrium, and to first order this is an affine
map followed by a rectifier, the form of CE followed by ReLU.

**The game.** Channel c spreads a budget P_c over K positions to raise its rate against noise and the other channels:

    max Σ_k ln(1 + g_cc p_ck / (Σ_(d≠c) g_cd p_dk + N_ck)),   p_ck ≥ 0,   Σ_k p_ck ≤ P_c,   N_ck = σ_c / h_ck

We read the noise as σ/h: then there is something for eq. 31 to expand, and its result is affine in h.

**What holds**, for h > 0 and g ≥ 0. With L_ck = (Σ_d g_cd p_dk + N_ck) / g_cc, the sum over all d and so with p_ck
itself, p is an equilibrium if and only if (KKT; eq. 29 with its indices right)

    p_ck ≥ 0,   Σ_k p_ck = P_c,   1/L_ck ≤ ν_c,   p_ck (ν_c - 1/L_ck) = 0

and where all p are positive, G p_k = diag(G)/ν - N_k.

* **Solved numerically**, the players responding in turn by water-filling, these conditions hold to 1e-10, and no player
  gains by moving. Indices matter: the equilibrium for G = (1, 0.5; 0.1, 1), N = (1, 0.5; 0.2, 1), P = 1 breaks them by
  {swapped}, in shares of budget and ν, where g_cd is read as g_dc.
* **An equilibrium exists**; it **need not be the only one**. Water-filling is a Euclidean projection, so the equilibria
  are those of a game with quadratic costs, and G + Gᵀ positive definite is enough for just one. The root of a
  full-rank covariance is that; an unrestricted g need not be. For G = (1, 2; 2, 1), N = 1, P = 1 and two positions
  there are three: each player keeps to a position of its own (two ways; rates {apart}), or both spread evenly (rates
  {even}).

**The linear proxy** (eq. 31). This solution is affine in N = σ/h, not in h. To first order about h = -1, -1/h is
2 + h, and so, with δ = 0,

    p_k ≈ max(0, G⁻¹ (Diag(σ) h_k + 2σ + diag(G)/ν))

which has CE's form, with h for x̄, σ for γ, and G⁻¹ for D^(-1/2). The relative error of 2 + h is exactly (h + 1)²:

{expansion_table}

* At h = -1, where it is exact, the noise power is -σ: negative, so a rate exists only where interference outweighs it.
* For h > 0 the two differ by (h + 1)² / h, **at least 4**: with the equilibrium's own ν the proxy is never near.
* Read with h = x̄: of a standard normal h, {within} lie where the expansion is good to a tenth, half have a negative
  noise, and at h = 0 the exact term is infinite.
* But 4 is a constant, and eq. 31 has room for one: its term is (2 + δ) σ, with a δ that the paper leaves open. δ = -4
  makes 2 + h into h - 2, the expansion about h = **+1**. Or a ν of the proxy's own, so that it meets the budgets, takes
  the constant up (in CE a learned β can): then both give the same powers. So the proxy is best read as first order
  about h = 1, for h near 1.

A small game: G = (1, 0.3, 0.1; 0.3, 1, 0.2; 0.1, 0.2, 1), σ = (0.1, 0.2, 0.3), h of three players at four positions
between 0.5 and 2, P = 4.

{power_table}

The same G and σ at 16 positions, ln h normal with mean 0 and standard deviation s, 20 games for each s. The errors are
shares of how far the equilibrium is from an even split: at 1, a proxy says no more than "split each budget evenly". The
last column is one affine map of h, fitted by least squares to the equilibria of all 20 games.

{spread_table}

Measured by the power itself, the proxy about -1 with the exact ν is wrong by {least} to {most}. With budgets met it is
good for small s, and at s = {widest} says next to nothing (error {resolved}; the fitted map {fitted}). The game
motivates CE's form; it does not derive its numbers.

![Left: the noise term and its expansions; right: errors of the linear proxies](theory/interference_game.png)
"""
