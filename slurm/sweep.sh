#!/usr/bin/env bash
# Submits the points of a sweep that are not done, as an array job, and the report to follow it, whatever became of them:
#
#   slurm/sweep.sh jobs/sweeps/ablations_short.yaml
#   CM3_LIMIT=8 CM3_SBATCH="--gpus-per-node=1 --time=4:00:00" slurm/sweep.sh jobs/sweeps/paper_grid.yaml
#
# Arguments: the sweep file, then settings over every point. Once more after an interruption, a scancel or a failure:
# the same command. The variables are in docs/slurm.md.
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
into=${CM3_INTO:-${CM3_RUNS:-runs}/$(basename "$1" .yaml)}
name="cm3-sweep $into" # two jobs must not write the same run folders
queued=$(squeue --me --noheader --format=%F --name="$name" | sort -u | paste -sd ' ')
[ -z "$queued" ] || { echo "error: $into: job $queued is in the queue already; wait for it, or scancel $queued" >&2; exit 2; }
if [ -n "${CM3_SETUP:-}" ]; then eval "$CM3_SETUP"; fi
todo=$(${CM3_PYTHON:-.venv/bin/python} -m jobs.expand "$@" --into "$into" --todo)
if [ -n "$todo" ]; then
    sweep=$(sbatch --parsable --job-name="$name" --array="$todo${CM3_LIMIT:+%$CM3_LIMIT}" ${CM3_SBATCH:-} slurm/sweep.sbatch "$@")
    sweep=${sweep%%;*}
    echo "sweep   job $sweep, points $todo; logs $into/slurm/$sweep/"
fi
report=$(sbatch --parsable ${sweep:+--dependency=afterany:"$sweep"} slurm/report.sbatch "$into")
echo "report  job ${report%%;*}; $into/report.html"
