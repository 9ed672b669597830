#!/bin/bash
# A cohort as a Slurm array: each task restores one share of the scans into the same output folder.
#
#   sbatch --array=0-15 deploy/slurm/udean-array.sh scans/ -o out/
#   SHARDS=16 sbatch --array=3,7 deploy/slurm/udean-array.sh scans/ -o out/     # two of 16 again
#   udean-status out/
#
# Everything after the script's name goes to udean-run. A task that is stopped, by a time limit or because its
# machine is wanted, finishes the scan that it is writing; submitted again, it goes on from there.
#SBATCH --job-name=udean
#SBATCH --array=0-15
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=12:00:00
#SBATCH --output=udean-%A-%a.log
#SBATCH --requeue
#SBATCH --open-mode=append
## On GPUs also: #SBATCH --gpus-per-task=1
set -euo pipefail

shard=${SLURM_ARRAY_TASK_ID:?submit it as an array: sbatch --array=0-15 $0 ...}
# Of an array of its own the last index says how many shards there are; parts of one have to be told.
shards=${SHARDS:-$((SLURM_ARRAY_TASK_MAX + 1))}
if [[ -z ${SHARDS:-} && $SLURM_ARRAY_TASK_COUNT -ne $shards ]]; then
    echo "The array has $SLURM_ARRAY_TASK_COUNT tasks up to $SLURM_ARRAY_TASK_MAX: set SHARDS to the number of all." >&2
    exit 2
fi

# Slurm's SIGTERM reaches udean-run itself, not a shell around it.
exec udean-run --num-shards "$shards" --shard "$shard" --threads "${SLURM_CPUS_PER_TASK:-1}" "$@"
