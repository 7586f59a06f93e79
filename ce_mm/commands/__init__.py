"""What a user types: each module a command of ``ce_mm``, whose ``main`` reads the command line."""
