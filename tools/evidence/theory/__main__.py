"""Write docs/theory.md with its pictures and numbers: python -m tools.evidence.theory [--docs FOLDER]."""

import argparse
import sys
from pathlib import Path

from tools.evidence.theory.page import write_theory


def main() -> None:
    """Parse the arguments and write; bad input ends with one line and status 2."""
    parser = argparse.ArgumentParser("theory", description=__doc__)
    parser.add_argument(
        "--docs",
        type=Path,
        default=Path(__file__).resolve().parents[3] / "docs",
        help="where theory.md and theory/ go (default: the project's docs)",
    )
    args = parser.parse_args()
    try:
        write_theory(args.docs)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
