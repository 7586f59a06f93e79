"""Checkpoints as data: reading them safely, converting them between layouts."""
