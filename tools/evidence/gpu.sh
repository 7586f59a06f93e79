#!/usr/bin/env bash
# All that a GPU is needed for, in slices of at most nine minutes: bash tools/evidence/gpu.sh OUT [SLICE ...]
# Without a slice, all that are not done yet. PYTHON names another python than python3.
set -euo pipefail
out=$(realpath -m "${1:?usage: bash tools/evidence/gpu.sh OUT [SLICE ...]}")
shift
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" -m tools.evidence.gpu "$out" "$@"
