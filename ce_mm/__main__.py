"""The command ``ce_mm``, or ``python -m ce_mm``."""
import argparse
import sys
import time
from collections.abc import Sequence

from ce_mm.ops.backends.numba_ready import warm_up

WARM_UP = "compile the CPU's passes now, or find them compiled, so that no training or service waits for it later"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments, or else the command line's, ask for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="ce_mm", description="Channel Equilibrium for the OpenMMLab libraries.")
    commands = parser.add_subparsers()
    commands.add_parser("warmup", help=WARM_UP, description=WARM_UP).set_defaults(run=_warm_up)
    asked = parser.parse_args(arguments)
    if not hasattr(asked, "run"):
        parser.print_help()
        return 0
    return asked.run()


def _warm_up() -> int:
    start = time.monotonic()
    try:
        place = warm_up()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"The CPU's passes are ready after {time.monotonic() - start:.1f} s, and are kept in {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
