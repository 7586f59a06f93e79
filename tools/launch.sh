# How the scripts beside this one, which have set $tools to their folder, start processes; before any starts, each fault
# of the arguments is one line and exit code 2.

# whole_number NAME VALUE LOWEST [HIGHEST]
whole_number() {
    local range="of at least $3"
    if [ $# -gt 3 ]; then
        range="from $3 to $4"
    fi
    # At most nine digits, so that no arithmetic of the shell's overflows; 10# as 08 is no octal number.
    if [[ ! $2 =~ ^[0-9]{1,9}$ ]] || ((10#$2 < $3)) || ((10#$2 > ${4:-10#$2})); then
        echo "error: $1 is '$2'; expected a whole number $range" >&2
        exit 2
    fi
}

# config_file PATH
config_file() {
    if [ ! -f "$1" ]; then
        echo "error: config file $1: there is no such file; check the path" >&2
        exit 2
    fi
}

export PYTHONPATH="${tools%/*}${PYTHONPATH:+:$PYTHONPATH}"

# torch_launch GPUS TOOL CONFIG [ARGUMENT...]
torch_launch() {
    config_file "$3"
    if [[ ! $1 =~ ^(auto|cpu|gpu)$ ]]; then # which torch.distributed.run counts by itself
        whole_number GPUS "$1" 1
    fi
    whole_number NNODES "${NNODES:-1}" 1
    whole_number NODE_RANK "${NODE_RANK:-0}" 0 $((10#${NNODES:-1} - 1))
    whole_number PORT "${PORT:-29500}" 1 65535
    exec python -m torch.distributed.run \
        --nnodes="${NNODES:-1}" \
        --node-rank="${NODE_RANK:-0}" \
        --master-addr="${MASTER_ADDR:-127.0.0.1}" \
        --master-port="${PORT:-29500}" \
        --nproc-per-node="$1" \
        "$tools/$2" "${@:3}"
}

# slurm_launch PARTITION JOB_NAME TOOL CONFIG [ARGUMENT...]
slurm_launch() {
    config_file "$4"
    whole_number GPUS "${GPUS:-8}" 1
    whole_number GPUS_PER_NODE "${GPUS_PER_NODE:-8}" 1
    whole_number CPUS_PER_TASK "${CPUS_PER_TASK:-5}" 1
    local srun_args
    read -r -a srun_args <<< "${SRUN_ARGS:-}"
    exec srun \
        --partition="$1" \
        --job-name="$2" \
        --gres="gpu:${GPUS_PER_NODE:-8}" \
        --ntasks="${GPUS:-8}" \
        --ntasks-per-node="${GPUS_PER_NODE:-8}" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        "${srun_args[@]}" \
        python -u "$tools/$3" "${@:4}"
}
