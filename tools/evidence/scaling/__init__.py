"""A training step on many GPUs, on paper: docs/scaling.md."""
