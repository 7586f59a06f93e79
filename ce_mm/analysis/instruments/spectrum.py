"""How unequal the channels of each group are, of the base norm's output and of CE's, over a data set."""
from pathlib import Path

from torch import Tensor

from ce_mm.analysis.instruments.output import check_output, number_layers, tidy, write_report
from ce_mm.analysis.instruments.source import Source
from ce_mm.analysis.spectrum import GROUP_SIZE, covariances, eigenvalues, spread

NAME = "spectrum"


def spectrum(source: Source, out: Path, group_size: int = GROUP_SIZE) -> dict:
    """Measure, and write spectrum.json and .png.

    Args:
        source: what to measure.
        out: folder to write to.
        group_size: for norms without batch decorrelation, which have no groups of their own.

    Returns:
        What the JSON file holds.

    Raises:
        ValueError: an argument is wrong, or the network has no norm of maps.
    """
    if group_size < 1:
        raise ValueError(f"expected a group of at least one channel, got {group_size}")
    check_output(out, NAME, source)
    subject = source.load()
    found = covariances(subject.model, subject.passes(), group_size)
    if not found:
        raise ValueError("this network has no norm of maps; expected batch, group, instance norm, SN or CE")
    report = dict(
        instrument=NAME,
        **source.describe(),
        samples=subject.samples,
        spread="standard deviation over mean of the eigenvalues of a group's covariance, averaged over the groups: 0 "
        "where channels are uncorrelated and of one variance, sqrt(group_size - 1) where they are all the same",
        before="of the base norm's output, over the pictures and positions, in eval mode",
        after="of CE's output in front of residual add and rectifier; null where no CE follows",
        layers=[
            dict(
                norm=name,
                group_size=spectra.before.shape[-1],
                groups=len(spectra.before),
                before=_measures(spectra.before),
                after=None if spectra.after is None else _measures(spectra.after),
            )
            for name, spectra in found.items()
        ],
    )
    write_report(report, _draw(report), out, NAME)
    return report


def _measures(matrices: Tensor) -> dict:
    values = eigenvalues(matrices)
    return dict(spread=spread(values), eigenvalues=values.tolist())


def table(report: dict) -> str:
    """The report as text, a norm a line."""
    width = max(len(row["norm"]) for row in report["layers"])
    lines = [f"{'norm':{width}}  group size  spread before CE  after"]
    for row in report["layers"]:
        after = "     -" if row["after"] is None else f"{row['after']['spread']:6.3f}"
        lines.append(f"{row['norm']:{width}}  {row['group_size']:10}  {row['before']['spread']:16.3f}  {after}")
    lines.append(f"\nSpread of the eigenvalues in a group (standard deviation / mean), {report['samples']} pictures")
    return "\n".join(lines)


def _draw(report: dict):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), dpi=120, layout="constrained")
    axis = figure.subplots()
    rows = list(enumerate(report["layers"], 1))
    plain = [(number, row["before"]["spread"]) for number, row in rows if row["after"] is None]
    ce = [(number, row["before"]["spread"], row["after"]["spread"]) for number, row in rows if row["after"]]
    if plain:
        axis.plot(*zip(*plain, strict=True), "o", color="0.7", ms=4, label="norm without CE")
    if ce:
        places, before, after = zip(*ce, strict=True)
        axis.vlines(places, before, after, color="0.8", lw=1)
        axis.plot(places, before, "o", color="C1", ms=5, label="norm in front of CE")
        axis.plot(places, after, "o", color="C0", ms=5, label="behind CE")
    axis.set(title="spread of the eigenvalues of Σ", ylabel="standard deviation / mean", ylim=(0, None))
    number_layers(axis, len(rows), "norm, in the order of the calls")
    tidy(axis)
    return figure
