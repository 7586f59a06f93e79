#!/usr/bin/env bash
# Set-up, lint, types and all tests, from any folder: bash tools/run_tests.sh [options of pytest, paths from the root]
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
if ! command -v python3 >/dev/null; then
    echo "error: python3 is not on PATH; install Python 3.11, 3.12 or 3.13" >&2
    exit 1
fi
python3 tools/setup_env.py

# Nothing from outside .venv; one thread for each of the two workers, which would otherwise fight for the cores.
unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1 OMP_NUM_THREADS=1
.venv/bin/python -m ruff check .
.venv/bin/python -m mypy
# Neighbouring tests share costly fixtures: worksteal leaves them together until a worker runs dry.
exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
