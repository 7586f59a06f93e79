# What the scripts beside this one check before they start any process: each fault is one line and exit code 2.

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

# torch_launch CONFIG GPUS: of dist_train.sh and dist_test.sh
torch_launch() {
    config_file "$1"
    if [[ ! $2 =~ ^(auto|cpu|gpu)$ ]]; then # which torch.distributed.run counts by itself
        whole_number GPUS "$2" 1
    fi
    whole_number NNODES "${NNODES:-1}" 1
    whole_number NODE_RANK "${NODE_RANK:-0}" 0 $((10#${NNODES:-1} - 1))
    whole_number PORT "${PORT:-29500}" 1 65535
}

# slurm_launch CONFIG: of slurm_train.sh and slurm_test.sh
slurm_launch() {
    config_file "$1"
    whole_number GPUS "${GPUS:-8}" 1
    whole_number GPUS_PER_NODE "${GPUS_PER_NODE:-8}" 1
    whole_number CPUS_PER_TASK "${CPUS_PER_TASK:-5}" 1
}
