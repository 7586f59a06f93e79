#!/usr/bin/env bash
# Testing on a Slurm cluster, one task per GPU.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]" >&2
    echo "from the environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS (none; split at spaces)" >&2
    exit 2
fi
partition=$1
job_name=$2
config=$3
checkpoint=$4
read -r -a srun_args <<< "${SRUN_ARGS:-}"
tools=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$tools/launch_checks.sh"
slurm_launch "$config"
export PYTHONPATH="${tools%/*}${PYTHONPATH:+:$PYTHONPATH}"
exec srun \
    --partition="$partition" \
    --job-name="$job_name" \
    --gres="gpu:${GPUS_PER_NODE:-8}" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    "${srun_args[@]}" \
    python -u "$tools/test.py" "$config" "$checkpoint" --launcher=slurm "${@:5}"
