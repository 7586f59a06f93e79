"""Parameters and multiply-adds: python -m tools.evidence.complexity CONFIG... [--shape H W] [--out FOLDER].

Prints a table of what each network costs, CE's moments, coefficients and affine map told apart; with --out it also
writes complexity.json, complexity.md and complexity.png. CONFIG may be a folder, for the config files in it. No layer
is computed, so it takes a second or two for each.
"""

import argparse
import re
import sys
from pathlib import Path

from tqdm import tqdm

from ce_mm.files import check_folder
from ce_mm.launching.config import read_config
from tools.evidence.complexity.table import FILES, by_network, in_all_stages, markdown_table, measure, write
from tools.evidence.pages import command_line


def main() -> None:
    """Parse the arguments, count and print; bad input ends with one line and status 2."""
    parser = argparse.ArgumentParser(
        "complexity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="config files, or folders of them")
    parser.add_argument(
        "--shape", nargs=2, type=int, metavar=("H", "W"), help="of the picture (default: what each config tests with)"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write the three files")
    args = parser.parse_args()
    try:
        configs = {file: read_config(str(file)) for path in args.configs for file in _files(path)}
        if args.out:
            check_folder(args.out, FILES, configs)
        shape = (3, *args.shape) if args.shape else None
        progress = tqdm(configs.items(), disable=None, leave=False, unit="config")
        rows = [measure(path, config, shape) for path, config in progress]
        rows += in_all_stages(rows, configs)
        if args.out:
            write(rows, args.out, command_line("complexity", sys.argv[1:]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for network, group in by_network(rows).items():
        print(f"{network}\n{markdown_table(group)}\n")


def _files(path: Path) -> list[Path]:
    """The path itself, or the config files in it, by name with numbers in their order."""
    if not path.is_dir():
        return [path]
    files = list(path.glob("*.py"))
    files.sort(key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.stem)])
    if not files:
        raise ValueError(f"{path}: there is no config file (*.py) in this folder")
    return files


if __name__ == "__main__":
    main()
