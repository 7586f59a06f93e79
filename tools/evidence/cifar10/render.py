"""The study's page and pictures once more, from the numbers that a run has left beside them.

python -m tools.evidence.cifar10.render docs/cifar10
"""
import argparse
import json
import sys
from pathlib import Path

from tools.evidence.cifar10.report import FILES, render


def main() -> int:
    """Write page and pictures into a folder that has the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help=f"with {FILES[0]}")
    folder = parser.parse_args().folder
    try:
        record = json.loads((folder / FILES[0]).read_text())
    except (ValueError, OSError) as error:
        print(f"error: {folder}: expected a {FILES[0]} that a run has written ({error})", file=sys.stderr)
        return 2
    render(record, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
