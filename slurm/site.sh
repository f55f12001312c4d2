# shellcheck shell=bash disable=SC2034
# What is particular to a cluster; the one file to edit. A job sources it for its environment, and your shell for
# sbatch's options, which sbatch reads from these variables:
#
#   source slurm/site.sh && sbatch --nodes=4 slurm/train.sbatch RECIPE
#
# Jobs find it in slurm/ of the folder that sbatch was called in, or where SITE says.

# sbatch's options: any SBATCH_… of `man sbatch`.
# export SBATCH_PARTITION=gpu SBATCH_ACCOUNT=my-project SBATCH_CONSTRAINT=h100
# export SBATCH_TIMELIMIT=24:00:00 SBATCH_GPUS_PER_NODE=8

# Where megatron-rl is installed, on a file system that every node has.
VENV=${VENV:-.venv}
if [[ -f $VENV/bin/activate ]]; then
    # shellcheck disable=SC1091
    source "$VENV/bin/activate"
fi

# The network between nodes, where the first interface is not the one: see `ip -brief address` on a node.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# A container, one of two ways; docs/launching.md says which is which.
INSIDE=()     # a command before ours:   INSIDE=(apptainer exec --nv --bind "$PWD" /images/megatron-rl.sif)
              # or                       INSIDE=(ch-run --bind="$PWD" --cd="$PWD" /images/megatron-rl --)
CONTAINER=()  # Pyxis' options of srun:  CONTAINER=(--container-image=/images/megatron-rl.sqsh --container-mounts="$PWD")
