"""What a checkpoint says without data: the share of β ≤ 0 (the paper's table 6), and λ of every CE layer."""
from pathlib import Path

import torch

from ce_mm.analysis.instruments.output import check_output, number_layers, tidy, write_report
from ce_mm.analysis.instruments.source import Source
from ce_mm.analysis.norms import affine_parameters, mixing_ratios, nonpositive_ratio

NAME = "norm_parameters"


def norm_parameters(source: Source, out: Path) -> dict:
    """Measure, and write norm_parameters.json and .png.

    Args:
        source: what to measure; its data need not be there.
        out: folder to write to.

    Returns:
        What the JSON file holds.

    Raises:
        ValueError: the source cannot be used, or the network has no norm with γ and β.
    """
    check_output(out, NAME, source)
    model = source.load_model()
    parameters, ratios = affine_parameters(model), mixing_ratios(model)
    if not parameters:
        raise ValueError("this network has no norm with gamma and beta; expected batch, group, instance norm, SN or CE")
    report = dict(
        instrument=NAME,
        **source.describe(),
        nonpositive_beta=nonpositive_ratio(torch.cat([beta for _, beta in parameters.values()])),
        of="the part of the channels with beta <= 0, over all norms; a CE layer counts by its base norm",
        norms=[
            dict(norm=name, channels=len(beta), nonpositive_beta=nonpositive_ratio(beta))
            for name, (_, beta) in parameters.items()
        ],
        mixing_ratio="lambda = sigmoid(mix): 1 is batch decorrelation alone, 0 instance reweighting alone",
        ce_layers=[{"norm": name, "lambda": ratio} for name, ratio in ratios.items()],
    )
    write_report(report, _draw(report), out, NAME)
    return report


def table(report: dict) -> str:
    """The report as text, a norm a line."""
    mixing = {row["norm"]: f"{row['lambda']:.3f}" for row in report["ce_layers"]}
    width = max(len(row["norm"]) for row in report["norms"])
    lines = [f"{'norm':{width}}  channels  beta <= 0  lambda"]
    lines += [
        f"{row['norm']:{width}}  {row['channels']:8}  {row['nonpositive_beta']:9.3f}  {mixing.get(row['norm'], '-'):>6}"
        for row in report["norms"]
    ]
    lines.append(f"\nbeta <= 0 in {report['nonpositive_beta']:.3f} of all channels")
    return "\n".join(lines)


def _draw(report: dict):
    from matplotlib.figure import Figure

    panels = 2 if report["ce_layers"] else 1
    figure = Figure(figsize=(6.4 * panels, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    shares = [row["nonpositive_beta"] for row in report["norms"]]
    mean = report["nonpositive_beta"]
    axes[0].bar(range(1, len(shares) + 1), shares)
    axes[0].axhline(mean, color="black", lw=1, ls="--", label=f"all channels: {mean:.3f}")
    axes[0].set(title="channels with β ≤ 0", ylabel="ratio", ylim=(0, 1))
    number_layers(axes[0], len(shares), "norm, in the order of the model")
    tidy(axes[0])
    if report["ce_layers"]:
        ratios = [row["lambda"] for row in report["ce_layers"]]
        axes[1].plot(range(1, len(ratios) + 1), ratios, marker="o", lw=1)
        axes[1].axhline(0.5, color="0.5", lw=1, ls=":")
        axes[1].set(title="λ: 1 is batch decorrelation, 0 instance reweighting", ylim=(0, 1), ylabel="λ")
        number_layers(axes[1], len(ratios), "CE layer, in the order of the model")
        tidy(axes[1])
    return figure
