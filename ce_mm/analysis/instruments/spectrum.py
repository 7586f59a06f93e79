"""How unequal the channels of each group are, of the base norm's output and of CE's, over a data set."""
from torch import Tensor

from ce_mm.analysis import panels
from ce_mm.analysis.instruments.command import Instrument, columns, number_layers
from ce_mm.analysis.instruments.source import Source
from ce_mm.analysis.spectrum import covariances, eigenvalues, spread


def measure(source: Source, group_size: int) -> dict:
    """The eigenvalues of each group and their spread, of the base norm's output and of CE's.

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
    layers = [
        dict(
            norm=name,
            group_size=spectra.before.shape[-1],
            groups=len(spectra.before),
            before=_numbers(spectra.before),
            after=None if spectra.after is None else _numbers(spectra.after),
        )
        for name, spectra in found.items()
    ]
    return dict(samples=subject.samples, layers=layers)


def _numbers(matrices: Tensor) -> dict:
    values = eigenvalues(matrices)
    return dict(spread=spread(values), eigenvalues=values.tolist())


def table(report: dict) -> str:
    """A norm a line."""
    rows = [
        (row["norm"], row["group_size"], row["before"]["spread"], row["after"] and row["after"]["spread"])
        for row in report["layers"]
    ]
    said = f"Spread of the eigenvalues in a group (standard deviation / mean), {report['samples']} pictures"
    return f"{columns(('norm', 'group size', 'spread before CE', 'after'), rows)}\n\n{said}"


def draw(report: dict):
    """The spread of each norm, and of CE behind it."""
    figure, [axis] = panels(1)
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
    return figure


INSTRUMENT = Instrument("spectrum", measure, table, draw)
