"""Long, killed, dying and divided trainings: docs/reliability."""
