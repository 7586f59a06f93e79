"""Train a model: ce_mm train CONFIG [...], with the options of mmdet's or mmpretrain's own tools/train.py."""
import sys


def main() -> int:
    """Run upstream's tool; returns the exit code."""
    try:
        try:
            from ce_mm.launching import launch  # takes seconds, in which Ctrl-C must work as well
        except ImportError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return launch("train", sys.argv[1:])
    except KeyboardInterrupt:
        return 130
