"""Test a checkpoint: ce_mm test CONFIG CHECKPOINT [...], with the options of upstream's own tools/test.py."""
from ce_mm.commands import run_upstream


def main() -> int:
    """Run upstream's tool; returns the exit code."""
    return run_upstream("test")
