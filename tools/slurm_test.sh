#!/usr/bin/env bash
# Testing on a Slurm cluster, one task per GPU.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]" >&2
    echo "from the environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS (none; split at spaces)" >&2
    exit 2
fi
tools=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$tools/launch.sh"
slurm_launch "$1" "$2" test.py "$3" "$4" --launcher=slurm "${@:5}"
