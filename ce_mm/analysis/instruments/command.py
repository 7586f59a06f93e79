"""What all instruments share: CONFIG CHECKPOINT on the command line, and a folder with all numbers and a picture."""
import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mmengine.config import DictAction

from ce_mm.analysis import save_figure, tidy
from ce_mm.analysis.instruments.source import Source
from ce_mm.compat.requirements import MissingRequirementError
from ce_mm.files import check_folder, replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Instrument(NamedTuple):
    """What tells one instrument from another."""

    name: str  #: of its files, without .json and .png
    measure: Callable[..., dict]  #: of a :class:`Source` and the instrument's own arguments, numbers for a JSON file
    table: Callable[[dict], str]  #: of these numbers, a text
    draw: Callable[[dict], "Figure"]  #: of the same, a picture


class _Settings(DictAction):
    """mmengine's action, but for a traceback where a word has no ``=``."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, words: list, *rest: str) -> None:
        wrong = [word for word in words if "=" not in word]
        if wrong:
            parser.error(f"--cfg-options: expected key=value, got {wrong[0]!r}")
        super().__call__(parser, namespace, words, *rest)


def instrument_parser(description: str, with_data: bool = True) -> argparse.ArgumentParser:
    """A parser with the arguments of a :class:`Source` and ``--out``, to which an instrument's own may be added.

    Args:
        description: of the command, as --help shows it.
        with_data: whether the instrument looks at pictures.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file of a classifier or detector")
    parser.add_argument("checkpoint", help="weights that fit it")
    if with_data:
        parser.add_argument("--samples", type=int, help="take so many pictures, spread evenly (default: all)")
        parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--cfg-options", nargs="+", action=_Settings, help="settings to replace, key=value")
    parser.add_argument(
        "--out", type=Path, help="folder for the JSON file and the picture (default: analysis/ beside the checkpoint)"
    )
    return parser


def run(parser: argparse.ArgumentParser, instrument: Instrument) -> int:
    """Use an instrument as the command line says, print its table, and write NAME.json and NAME.png.

    Returns:
        0, or 2 after one line on stderr where the input is at fault.
    """
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    of_source = ("config", "checkpoint", "cfg_options", "device", "samples")
    source = Source(**{name: arguments.pop(name) for name in of_source if name in arguments})
    try:
        out = out or _beside(source.checkpoint)
        files = [f"{instrument.name}.json", f"{instrument.name}.png"]
        check_folder(out, files, [Path(source.config), Path(source.checkpoint)])
        report = dict(instrument=instrument.name) | asdict(source) | instrument.measure(source, **arguments)
        _write(report, instrument.draw(report), *(out / file for file in files))
    except (ValueError, OSError, MissingRequirementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"{instrument.table(report)}\n\nWritten to {out}")
    return 0


def _beside(checkpoint: str) -> Path:
    if "://" in checkpoint:
        raise ValueError(f"{checkpoint} is on no disk here; say where to write: --out FOLDER")
    return Path(checkpoint).parent / "analysis"


def _write(report: dict, figure: "Figure", numbers: Path, picture: Path) -> None:
    for axis in figure.axes:
        tidy(axis)
    numbers.parent.mkdir(parents=True, exist_ok=True)
    with replacing(numbers) as unfinished:
        unfinished.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    save_figure(figure, picture)


def columns(heads: Sequence[str], rows: Iterable[Sequence[str | int | float | None]]) -> str:
    """Rows as text under their heads: three digits of a float, - for None."""
    cells = [["-" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in (heads, *cells))


def number_layers(axis, count: int, what: str) -> None:
    """Label the axis to the right with numbers from 1, of layers for example."""
    axis.set(xlim=(0.4, count + 0.6), xlabel=what)
    axis.xaxis.get_major_locator().set_params(integer=True)
