# shellcheck shell=bash
# Shared by the scripts of this folder; docs/slurm.md lists the variables. Submit from the repository's root.

cd "$SLURM_SUBMIT_DIR" || exit
# shellcheck disable=SC2034  # for the scripts that source this
runs=${CM3_RUNS:-runs}
if [ -n "${CM3_SETUP:-}" ]; then eval "$CM3_SETUP"; fi     # e.g. module load cuda/12.4
read -ra python <<< "${CM3_PYTHON:-.venv/bin/python}"      # may be several words: apptainer exec --nv cm3.sif python
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}               # the trainer sets its own number of threads

# Everything said from now on goes to a file of this job, appended to when the job was requeued.
log_to() {
    mkdir -p "$(dirname "$1")"
    echo "log: $1"
    exec >> "$1" 2>&1
    # Slurm's own file, by its default name, held no more than the line above.
    rm -f "slurm-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}.out"
    echo "== job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), $(date '+%F %T'), $SLURM_JOB_NODELIST"
}

# Trains with the given arguments of cm3_dist.train: one Slurm task a node, each of them one torchrun, which meet by c10d
# at this node. Slurm's warning (or preemption) saves a checkpoint; the job is requeued then and goes on from there.
train() {
    local gpus=${SLURM_GPUS_ON_NODE:-0} words warned="" status=0
    local ranks=${CM3_RANKS:-$((gpus > 0 ? gpus : 1))} port
    port=$("${python[@]}" -c 'import socket; print(socket.create_server(("", 0)).getsockname()[1])') # free, on this node
    words=(-m torch.distributed.run --nnodes="$SLURM_NTASKS" --nproc_per_node="$ranks" --rdzv_backend=c10d
        --rdzv_id="$SLURM_JOB_ID" --rdzv_endpoint="$(hostname):$port"
        "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1" --shutdown-timeout="${CM3_GRACE:-240}"
        -m cm3_dist.train "$@" --resume auto)
    echo "\$ ${python[*]} $(printf '%q ' "${words[@]}")"
    # The warning reaches this shell alone (B: in --signal), which knows then why torchrun ended, and hands it on.
    trap 'warned=1; echo "== warned by Slurm: saving"; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
    srun --label ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "${python[@]}" "${words[@]}" &
    local step=$!
    while true; do
        status=0
        wait "$step" || status=$?
        kill -0 "$step" 2> /dev/null || break               # a trap ends `wait` early
    done
    trap - USR1
    if [ "$status" -ne 0 ] && [ -n "$warned" ]; then
        echo "== requeued, to go on from the checkpoint"
        scontrol requeue "$SLURM_JOB_ID" && sleep 60        # which ends this shell
        echo "== this Slurm does not let the job be requeued; submit it again" >&2
        return 75
    fi
    return "$status"
}
