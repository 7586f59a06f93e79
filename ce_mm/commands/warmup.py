"""Compile the CPU's passes now, or find them compiled, so that no training or service waits for it later."""
import argparse
import sys
import time


def main() -> int:
    """Parse the arguments, which are none, and compile; where there are no passes, one line and status 1."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    from ce_mm.ops.backends.numba_ready import warm_up

    start = time.monotonic()
    try:
        place = warm_up()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"The CPU's passes are ready after {time.monotonic() - start:.1f} s, and are kept in {place}")
    return 0
