"""The study's results: a table, the differences seed by seed, and a picture of them."""
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

import torch
from scipy.stats import t

from ce_mm.analysis import add_legend, save_figure
from ce_mm.version import __version__
from tools.evidence import pages
from tools.evidence.detection.running import EVALUATED

#: The numbers, the page and the picture.
FILES = ("results.json", "results.md", "results.png")
AP = dict(box="coco/bbox_mAP", mask="coco/segm_mAP")

Results = Mapping[str, Mapping[str, Sequence[dict]]]
"""Epochs of the detector -> norm -> what was measured for each seed."""

_PAGE = """# CE in detection, on the demo's shapes

```bash
{command}
```

PyTorch {torch}, ce_mm {version}, on a CPU. The demo's whole chain, with BN and with CE, everything else equal:
ResNet-18 of half width pretrained for six epochs on 4500 crops, then Mask R-CNN on 800 pictures, for three epochs in
the demo. AP (IoU .50:.95, in points) after the last epoch, on the demo's 80 pictures for validation and on 1000 others:
mean and standard deviation over the seeds that were finished for both. *Difference*: CE minus BN, paired by seed, from
three seeds on with its 95% interval (Student's t).

{table}

Seed by seed:

{seeds}

![AP by seed on the 1000 pictures, and on the 80 after each epoch](results.png)
"""


def write_report(results: Results, out: Path, command: str) -> None:
    """Write :data:`FILES`.

    Args:
        results: of the pairs that are finished.
        out: the folder to write to.
        command: what anyone can run again.
    """
    page = _PAGE.format(
        command=command, torch=torch.__version__, version=__version__, table=_table(results), seeds=_by_seed(results)
    )
    numbers = dict(command=command, versions=dict(ce_mm=__version__, torch=torch.__version__), results=results)
    pages.write(out, "results", page, numbers)
    _draw(results, out / FILES[2])


def points(runs: Sequence[dict], pictures: int, kind: str) -> list[float]:
    """AP of each seed on so many pictures, in points; ``kind`` is box or mask."""
    return [100 * run["metrics"][pictures][AP[kind]] for run in runs]


def differences(norms: Mapping[str, Sequence[dict]], pictures: int, kind: str) -> list[float]:
    """CE minus BN, seed by seed, in points."""
    pairs = zip(points(norms["BN"], pictures, kind), points(norms["CE"], pictures, kind), strict=True)
    return [ce - bn for bn, ce in pairs]


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95% interval of the mean of two values or more, by Student's t."""
    return t.ppf(0.975, len(values) - 1) * stdev(values) / sqrt(len(values))


def _table(results: Results) -> str:
    rows = []
    for epochs, pictures, kind in _kinds(results):
        norms = results[epochs]
        cells = [pages.spread(points(norms[norm], pictures, kind), ".1f") for norm in ("BN", "CE")]
        by_seed = differences(norms, pictures, kind)
        width = f" ± {interval(by_seed):.1f}" if len(by_seed) > 2 else ""
        rows.append([epochs, str(pictures), kind, str(len(by_seed)), *cells, f"{mean(by_seed):+z.1f}{width}"])
    return pages.table(["epochs", "pictures", "AP", "seeds", "BN", "CE", "difference"], rows, words=(0, 1, 2))


def _by_seed(results: Results) -> str:
    rows = [
        [epochs, str(pictures), kind, *(f"{value:+z.1f}" for value in differences(results[epochs], pictures, kind))]
        for epochs, pictures, kind in _kinds(results)
    ]
    most = max(map(len, rows)) - 3
    rows = [row + [""] * (most + 3 - len(row)) for row in rows]
    seeds = (f"seed {seed}" for seed in range(most))
    return pages.table(["epochs", "pictures", "AP", *seeds], rows, words=(0, 1, 2))


def _kinds(results: Results) -> list[tuple[str, int, str]]:
    """What is compared: epochs of the detector, how many pictures, box or mask."""
    return [(epochs, pictures, kind) for epochs in results for pictures in EVALUATED for kind in AP]


def _draw(results: Results, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((12, 4), layout="constrained", dpi=110)
    paired, curves = figure.subplots(1, 2)
    groups = [(epochs, kind) for epochs in results for kind in AP]
    for place, (epochs, kind) in enumerate(groups):
        most = max(EVALUATED)
        for bn, ce in zip(*(points(results[epochs][norm], most, kind) for norm in ("BN", "CE")), strict=True):
            paired.plot([place - 0.18, place + 0.18], [bn, ce], color="0.7", lw=1, zorder=1)
            paired.scatter([place - 0.18, place + 0.18], [bn, ce], color=["C0", "C1"], zorder=2)
    paired.set(xticks=range(len(groups)), xticklabels=[f"{kind}\n{epochs} epochs" for epochs, kind in groups])
    paired.set(ylabel="AP", title="BN (left) and CE (right), a line a seed")
    longest = results[max(results, key=int)]
    for colour, norm in (("C0", "BN"), ("C1", "CE")):
        for kind, style in (("box", "-"), ("mask", "--")):
            runs = [[100 * epoch[kind] for epoch in run["curve"]] for run in longest[norm]]
            middle = [mean(values) for values in zip(*runs, strict=True)]
            curves.plot(range(1, len(middle) + 1), middle, style, color=colour, label=f"{norm}, {kind}")
    curves.set(xlabel="epoch of the detector", ylabel="AP", title="mean over the seeds, the longest training")
    curves.xaxis.get_major_locator().set_params(integer=True)
    add_legend([curves], "right center")
    save_figure(figure, path)
