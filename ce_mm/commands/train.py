"""Train a model: ce_mm train CONFIG [...], with the options of mmdet's or mmpretrain's own tools/train.py."""
from ce_mm.commands import run_upstream


def main() -> int:
    """Run upstream's tool; returns the exit code."""
    return run_upstream("train")
