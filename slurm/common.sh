# shellcheck shell=bash
# Shared by the scripts in this folder. docs/slurm.md lists the variables. Submit from the repository's root.

cd "$SLURM_SUBMIT_DIR" || exit 2
# shellcheck disable=SC2034  # used by the scripts that source this file
runs=${CM3_RUNS:-runs}
if [ -n "${CM3_SETUP:-}" ]; then eval "$CM3_SETUP"; fi              # e.g. module load cuda/12.4
read -ra python <<< "${CM3_PYTHON:-.venv/bin/python}"               # may be several words: apptainer exec --nv cm3.sif python
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}                        # the trainer sets its own number of threads

# What scancel and scontrol call this job. A task of an array needs both numbers: the SLURM_JOB_ID of one of the tasks is
# also the id of the whole array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

# Redirects all output from now on to a file, which a requeued job appends to. Slurm's own output file names it.
log_to() {
    mkdir -p "$(dirname "$1")"
    echo "log: $1"
    exec >> "$1" 2>&1
    echo "== job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), $(date '+%F %T'), $SLURM_JOB_NODELIST"
}

# Below 32768, where Linux begins to take ports for outgoing connections: torchrun binds it only seconds later.
free_port() {
    local port=$((12000 + SLURM_JOB_ID % 8000))
    while (exec 3<> "/dev/tcp/localhost/$port") 2> /dev/null; do port=$((port + 1)); done
    echo "$port"
}

# Trains with the given arguments of cm3_dist.train: one torchrun per node, which meet at the job's first node. When Slurm
# warns the job (time limit, preemption), the ranks save a checkpoint; then the job is requeued and resumes from it.
train() {
    local gpus=${SLURM_GPUS_ON_NODE:-0} nodes=$SLURM_JOB_NUM_NODES hosts ranks cpus status=0 warned=''
    local torchrun options site_options first
    ranks=${CM3_RANKS:-$((gpus > 0 ? gpus : 1))}
    hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    first=${MASTER_ADDR:-${hosts%%$'\n'*}}
    [ "$nodes" -gt 1 ] || first=localhost                   # a machine alone need not know its own name
    torchrun=(-m torch.distributed.run "--nnodes=$nodes" "--nproc_per_node=$ranks"
        --rdzv_backend=c10d "--rdzv_id=$job" "--rdzv_endpoint=$first:${MASTER_PORT:-$(free_port)}")
    # Else torchrun gives the others the name of its machine, and they wait for ten minutes where it does not resolve.
    [ "$first" != localhost ] || torchrun+=(--local_addr=localhost)
    torchrun+=("--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1" "--shutdown-timeout=${CM3_GRACE:-240}"
        -m cm3_dist.train "$@" --resume auto)
    # One task per node, even if the job asked for more; it gets their CPUs. If one node fails, the others stop at once.
    options=(--label --kill-on-bad-exit=1 "--nodes=$nodes" "--ntasks=$nodes" --ntasks-per-node=1)
    cpus=$((${SLURM_CPUS_PER_TASK:-0} * ${SLURM_NTASKS_PER_NODE:-1}))
    if [ "$cpus" -gt 0 ]; then
        options+=("--cpus-per-task=$cpus")
        [ "$cpus" -ge "$ranks" ] || echo "== slow: $ranks ranks per node share $cpus CPUs; ask for more by --cpus-per-task"
    fi
    read -ra site_options <<< "${CM3_SRUN:-}"
    echo "\$ srun ${options[*]} ${site_options[*]} ${python[*]} $(printf '%q ' "${torchrun[@]}")"
    # The warning reaches this shell only (`B:` in --signal). The shell remembers it and passes it on to the ranks.
    trap 'warned=1; echo "== warned by Slurm: saving"; scancel --signal=USR1 "$job"' USR1
    srun "${options[@]}" "${site_options[@]}" "${python[@]}" "${torchrun[@]}" &
    local step=$!
    while true; do
        status=0
        wait "$step" || status=$?
        kill -0 "$step" 2> /dev/null || break               # a trap ends `wait` early
    done
    trap - USR1
    if [ "$status" -ne 0 ] && [ -n "$warned" ]; then
        echo "== requeued, to resume from the checkpoint"
        scontrol requeue "$job" && sleep 60                 # requeueing ends this shell
        echo "== this job may not be requeued; to resume, submit it again with: $(printf '%q ' "$@")" >&2
        return 75
    fi
    return "$status"
}
