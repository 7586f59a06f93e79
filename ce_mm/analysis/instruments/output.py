"""What all instruments write: a JSON file with everything that was measured and how, and a picture of it."""
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ce_mm.analysis import save_figure
from ce_mm.files import check_folder, replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ce_mm.analysis.instruments.source import Source

#: What the word means in the reports.
LAYER = (
    "A layer is one call of one rectifier (ReLU, LeakyReLU, ELU, ReLU6, or the ReLU in CE's last pass) in a forward "
    "pass, in the order of the calls, measured at its output: in a ResNet the stem, then one behind each norm of a "
    "block, the last behind the residual add. name#2 is the second call of the same module."
)


def check_output(folder: Path, name: str, source: "Source") -> None:
    """Raise ValueError where :func:`write_report` could not write, or would write over what is measured."""
    check_folder(folder, [f"{name}.json", f"{name}.png"], [Path(source.config), Path(source.checkpoint)])


def write_report(report: dict, figure: "Figure", folder: Path, name: str) -> None:
    """Write NAME.json and NAME.png into a folder, which is made if need be; each is there whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{name}.json") as unfinished:
        unfinished.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    save_figure(figure, folder / f"{name}.png")


def number_layers(axis, count: int, what: str) -> None:
    """Label an axis with numbers from 1, of layers for example."""
    axis.set(xlim=(0.4, count + 0.6), xlabel=what)
    axis.xaxis.get_major_locator().set_params(integer=True)


def tidy(axis) -> None:
    """A light grid, no frame on two sides, and a legend if something has a label."""
    axis.grid(which="major", color="0.88", lw=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize="small")
