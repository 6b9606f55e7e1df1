#!/usr/bin/env bash
# Submits the unfinished points of a sweep as an array job, and a report job that runs after it even if some points fail:
#
#   slurm/sweep.sh jobs/sweeps/ablations_short.yaml
#   slurm/sweep.sh --dry-run jobs/sweeps/ablations_short.yaml          # prints what it would submit
#   CM3_LIMIT=8 CM3_SBATCH="--gpus-per-node=1 --time=4:00:00" slurm/sweep.sh jobs/sweeps/paper_grid.yaml
#
# Arguments: the sweep file, then settings over every point. After an interruption, a scancel or a failure, run the same
# command again. docs/slurm.md lists the variables.
set -euo pipefail
exec 3>&1
dry_run=''
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
[ $# -gt 0 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

submit() { # prints the job's id
    if [ -n "$dry_run" ]; then
        { printf '%q ' sbatch "$@"; echo; } >&3
        echo JOBID
    else
        sbatch --parsable "$@" | cut -d ';' -f 1
    fi
}

into=${CM3_INTO:-${CM3_RUNS:-runs}/$(basename "$1" .yaml)}
name="cm3-sweep $into"
if [ -z "$dry_run" ]; then # two jobs must not write to the same run folders
    queued=$(squeue --me --noheader --format=%F --name="$name" | sort -u | paste -sd ' ')
    [ -z "$queued" ] || { echo "error: $into: job $queued is in the queue already; wait for it, or scancel $queued" >&2; exit 2; }
fi
if [ -n "${CM3_SETUP:-}" ]; then eval "$CM3_SETUP"; fi
read -ra python <<< "${CM3_PYTHON:-.venv/bin/python}"
read -ra options <<< "${CM3_SBATCH:-}"
todo=$("${python[@]}" -m jobs.expand "$@" --into "$into" --todo)
after=()
if [ -n "$todo" ]; then
    sweep=$(submit --job-name="$name" --array="$todo${CM3_LIMIT:+%$CM3_LIMIT}" "${options[@]}" slurm/sweep.sbatch "$@")
    echo "sweep   job $sweep, points $todo; logs $into/slurm/$sweep/"
    after=("--dependency=afterany:$sweep")
fi
report=$(submit "${after[@]}" slurm/report.sbatch "$into")
echo "report  job $report; $into/report.html"
