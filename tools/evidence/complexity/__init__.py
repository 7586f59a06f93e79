"""Parameters and multiply-adds of networks: docs/complexity.md."""
