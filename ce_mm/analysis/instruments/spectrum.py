"""How unequal the channels of a group are in front of CE and behind it: the spread of the covariance's eigenvalues."""
from ce_mm.analysis import panels
from ce_mm.analysis.instruments.command import number_layers
from ce_mm.analysis.instruments.source import Source
from ce_mm.analysis.spectrum import covariances, eigenvalues, spread


def measure(source: Source, group_size: int) -> dict:
    """The spread of the eigenvalues in a group and the eigenvalues themselves, of each norm before and after CE.

    Args:
        source: what to measure.
        group_size: for norms without batch decorrelation, which have no groups of their own.

    Raises:
        ValueError: an argument is wrong, or the network has no norm of maps.
    """
    if group_size < 1:
        raise ValueError(f"expected a group of at least one channel, got {group_size}")
    subject = source.load()
    found = covariances(subject.model, subject.passes(), group_size)
    if not found:
        raise ValueError("this network has no norm of maps; expected batch, group, instance norm, SN or CE")
    rows = []
    for name, spectra in found.items():
        before, after = (None if matrices is None else eigenvalues(matrices) for matrices in spectra)
        rows.append(dict(norm=name, group_size=before.shape[-1], groups=len(before)))
        for side, values in (("before", before), ("after", after)):
            rows[-1][side] = None if values is None else spread(values)
            rows[-1][f"eigenvalues_{side}"] = None if values is None else values.tolist()
    summary = "before and after CE: spread (standard deviation / mean) of the eigenvalues in a group, over"
    return dict(samples=subject.samples, layers=rows, summary=f"{summary} {subject.samples} pictures")


def draw(report: dict):
    """The spread of each norm, and of CE behind it."""
    figure, [axis] = panels(1)
    rows = list(enumerate(report["layers"], 1))
    plain = [(number, row["before"]) for number, row in rows if row["after"] is None]
    ce = [(number, row["before"], row["after"]) for number, row in rows if row["after"] is not None]
    if plain:
        axis.plot(*zip(*plain, strict=True), "o", color="0.7", ms=4, label="norm without CE")
    if ce:
        places, before, after = zip(*ce, strict=True)
        axis.vlines(places, before, after, color="0.8", lw=1)
        axis.plot(places, before, "o", color="C1", ms=5, label="norm in front of CE")
        axis.plot(places, after, "o", color="C0", ms=5, label="behind CE")
    axis.set(title="spread of the eigenvalues of Σ", ylabel="standard deviation / mean", ylim=(0, None))
    number_layers(axis, len(rows), "norm, in the order of the calls")
    return figure
