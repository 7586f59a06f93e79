"""The share of beta <= 0 of each norm, and lambda of each CE layer; no data are needed."""
import torch

from ce_mm.analysis import panels, say_none
from ce_mm.analysis.instruments.command import number_layers
from ce_mm.analysis.instruments.source import Source
from ce_mm.analysis.norms import affine_parameters, mixing_ratios, nonpositive_ratio


def measure(source: Source) -> dict:
    """The part of the channels with β ≤ 0, of all norms and of each, and λ of each CE layer.

    Raises:
        ValueError: the source, whose data need not be there, cannot be used, or has no norm with γ and β.
    """
    model = source.load_model()
    betas = {name: beta for name, (_, beta) in affine_parameters(model).items()}
    if not betas:
        raise ValueError("this network has no norm with gamma and beta; expected batch, group, instance norm, SN or CE")
    share = nonpositive_ratio(torch.cat(list(betas.values())))
    return dict(
        nonpositive_beta=share,
        norms=[
            dict(norm=name, channels=len(beta), nonpositive_beta=nonpositive_ratio(beta))
            for name, beta in betas.items()
        ],
        ce_layers=[{"norm": name, "lambda": ratio} for name, ratio in mixing_ratios(model).items()],
        summary=f"beta <= 0 in {share:.3f} of all channels",
    )


def draw(report: dict):
    """The share of each norm, and λ of each CE layer if there is one."""
    shares = [row["nonpositive_beta"] for row in report["norms"]]
    ratios = [row["lambda"] for row in report["ce_layers"]]
    figure, axes = panels(2 if ratios else 1)
    axes[0].bar(range(1, len(shares) + 1), shares)
    mean = report["nonpositive_beta"]
    axes[0].axhline(mean, color="black", lw=1, ls="--", label=f"all channels: {mean:.3f}")
    axes[0].set(title="channels with β ≤ 0", ylabel="ratio", ylim=(0, 1))
    number_layers(axes[0], len(shares), "norm, in the order of the model")
    if not any(shares):
        say_none(axes[0])
    if ratios:
        axes[1].plot(range(1, len(ratios) + 1), ratios, marker="o", lw=1)
        axes[1].axhline(0.5, color="0.5", lw=1, ls=":")
        axes[1].set(title="λ: 1 is batch decorrelation, 0 instance reweighting", ylim=(0, 1), ylabel="λ")
        number_layers(axes[1], len(ratios), "CE layer, in the order of the model")
    return figure
