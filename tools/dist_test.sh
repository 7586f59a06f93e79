#!/usr/bin/env bash
# Testing on several GPUs, of one machine or of NNODES machines (run it on each, with its own NODE_RANK). Without a GPU, so
# many processes run on the CPU; between machines gloo may need GLOO_SOCKET_IFNAME, the network interface to use.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]" >&2
    echo "from the environment: NNODES (1), NODE_RANK (0), MASTER_ADDR (127.0.0.1), PORT (29500)" >&2
    exit 2
fi
tools=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$tools/launch.sh"
torch_launch "$3" test.py "$1" "$2" --launcher pytorch "${@:4}"
