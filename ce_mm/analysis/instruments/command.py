"""What all instruments share: CONFIG CHECKPOINT on the command line, and a folder with all numbers and a picture."""
import argparse
import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from ce_mm.analysis import save_figure, tidy
from ce_mm.compat.requirements import MissingRequirementError, require
from ce_mm.files import check_folder, replacing


def instrument_parser(description: str, with_data: bool = True) -> argparse.ArgumentParser:
    """A parser with the arguments of a :class:`Source`, those for pictures if ``with_data``, and ``--out``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file of a classifier or detector")
    parser.add_argument("checkpoint", help="weights that fit it")
    if with_data:
        parser.add_argument("--samples", type=int, help="take so many pictures, spread evenly (default: all)")
        parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    options = dict(nargs="+", type=_setting, action=_Settings)
    parser.add_argument("--cfg-options", **options, help="settings to replace, key=value")
    parser.add_argument(
        "--out", type=Path, help="folder for the JSON file and the picture (default: analysis/ beside the checkpoint)"
    )
    return parser


def _setting(word: str) -> str:
    if "=" not in word:
        raise argparse.ArgumentTypeError(f"expected key=value, got {word!r}")
    return word


class _Settings(argparse.Action):
    """mmengine's DictAction, which is imported where there are settings."""

    def __call__(self, parser, namespace, values, option_string=None):
        require("mmengine")
        from mmengine.config import DictAction

        DictAction(self.option_strings, self.dest, self.nargs)(parser, namespace, values, option_string)


def run(parser: argparse.ArgumentParser, name: str) -> int:
    """Measure as the command line says, write NAME.json and NAME.png, and print the rows and the summary.

    Args:
        parser: of :func:`instrument_parser`, to which the instrument's own arguments may have been added.
        name: of the instrument, a module beside this one. Its ``measure`` gives what is to be written of a
            :class:`~ce_mm.analysis.instruments.source.Source` and those arguments, with a ``summary`` in words; its
            ``draw`` makes a figure of it.

    Returns:
        0, or 2 after one line on stderr where the input is at fault.
    """
    try:
        arguments = vars(parser.parse_args())
        out = arguments.pop("out")
        require("mmengine", "mmcv")
        from ce_mm.analysis.instruments.source import Source

        instrument = importlib.import_module(f"ce_mm.analysis.instruments.{name}")
        of_source = ("config", "checkpoint", "cfg_options", "device", "samples")
        source = Source(**{name: arguments.pop(name) for name in of_source if name in arguments})
        out = out or _beside(source.checkpoint)
        numbers, picture = out / f"{name}.json", out / f"{name}.png"
        check_folder(out, [numbers.name, picture.name], [Path(source.config), Path(source.checkpoint)])
        report = dict(instrument=name) | asdict(source) | instrument.measure(source, **arguments)
        figure = instrument.draw(report)
        for axis in figure.axes:
            tidy(axis)
        out.mkdir(parents=True, exist_ok=True)
        with replacing(numbers) as unfinished:
            unfinished.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        save_figure(figure, picture)
    except (ValueError, OSError, MissingRequirementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    tables = [table(value) for value in report.values() if isinstance(value, list) and value]
    print(*tables, report["summary"], f"Written to {out}", sep="\n\n")
    return 0


def _beside(checkpoint: str) -> Path:
    if "://" in checkpoint:
        raise ValueError(f"{checkpoint} is on no disk here; say where to write: --out FOLDER")
    return Path(checkpoint).parent / "analysis"


def table(rows: list[dict]) -> str:
    """Rows as text, under the names of what is one value in each: three digits of a float, - for None."""
    heads = [head for head in rows[0] if not any(isinstance(row[head], list) for row in rows)]
    cells = [[_text(row[head]) for head in heads] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in (heads, *cells))


def _text(value: str | int | float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def number_layers(axis, count: int, what: str) -> None:
    """Label the axis to the right with numbers from 1, of layers for example."""
    axis.set(xlim=(0.4, count + 0.6), xlabel=what)
    axis.xaxis.get_major_locator().set_params(integer=True)
