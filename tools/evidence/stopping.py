"""A study that is stopped, by Ctrl-C, ``kill`` or ``timeout``, ends what it has started, and can be gone on with."""
import functools
import signal
import sys
from collections.abc import Callable


def resumable(main: Callable[[], int]) -> Callable[[], int]:
    """The ``main`` of a study that keeps what is finished, with one end for both signals: a line, and status 130."""

    @functools.wraps(main)
    def run() -> int:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return main()
        except KeyboardInterrupt:
            print("Interrupted. Run the same command again to go on.", file=sys.stderr)
            return 130
        finally:
            signal.signal(signal.SIGTERM, before)

    return run
