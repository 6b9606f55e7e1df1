#!/usr/bin/env bash
# Starts a Slurm on this machine, to try the scripts of this folder. It changes nothing outside of its folder.
#
#   apt-get install slurm-wlm munge          # once; Debian and Ubuntu
#   eval "$(slurm/local.sh up)"              # sets SLURM_CONF for sbatch, squeue and scancel, and MASTER_ADDR for torchrun
#   slurm/local.sh down
#
# usage: slurm/local.sh up|down [DIR]        DIR: by default .slurm-local
#   CM3_LOCAL_NODES=2     number of nodes; each is one slurmd on this machine
#   CM3_LOCAL_CPUS=4      CPUs per node, whether the machine has them or not; by default all of the machine's
#   CM3_LOCAL_PORT=20000  first port to try; by default a random one
set -euo pipefail
mark="# written by slurm/local.sh"

fail() { echo "error: $*" >&2; exit 2; }

write_configuration() { # NODES CPUS FIRST_PORT
    local memory user node
    memory=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
    user=$(id -un)
    cat > "$dir/slurm.conf" <<END
$mark
ClusterName=local
SlurmctldHost=localhost
SlurmctldPort=$3
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$dir/munge.sock,cred_expire=10
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/slurmctld.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmdLogFile=$dir/slurmd-%n.log
SlurmdSpoolDir=$dir/spool-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=5
KillWait=30
END
    for ((node = 1; node <= $1; node++)); do
        mkdir -p "$dir/spool-node$node"
        echo "NodeName=node$node NodeHostname=localhost NodeAddr=127.0.0.1 Port=$(($3 + node))" \
            "CPUs=$2 RealMemory=$memory" >> "$dir/slurm.conf"
    done
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP" >> "$dir/slurm.conf"
}

start_daemons() { # NODES
    local node
    mkdir -p "$dir/state"
    (umask 077 && head -c 1024 /dev/urandom > "$dir/munge.key")
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/munged.pid" \
        --log-file="$dir/munged.log" --seed-file="$dir/munge.seed" >&2
    slurmctld -f "$dir/slurm.conf" >&2
    for ((node = 1; node <= $1; node++)); do slurmd -f "$dir/slurm.conf" -N "node$node" >&2; done
}

stop_daemons() {
    local pid
    # By command line too: a daemon that has just started has no pid file yet.
    for pid in $(cat "$dir"/slurm*.pid 2> /dev/null; pgrep -f -- "-f $dir/slurm.conf"); do
        kill "$pid" 2> /dev/null || true
        for _ in $(seq 50); do
            kill -0 "$pid" 2> /dev/null || break
            sleep 0.1
        done
    done
    munged --socket="$dir/munge.sock" --stop > /dev/null 2>&1 || true
}

port_is_taken() { grep -qs "Address already in use" "$dir"/slurm*.log; }

wait_until_idle() { # NODES
    for _ in $(seq 60); do
        if port_is_taken; then return 1; fi
        if [ "$(SLURM_CONF=$dir/slurm.conf sinfo -h -t idle -o %D 2> /dev/null)" = "$1" ]; then return 0; fi
        sleep 0.5
    done
    return 1
}

up() {
    local program nodes=${CM3_LOCAL_NODES:-1} cpus=${CM3_LOCAL_CPUS:-$(nproc)}
    # Below 32768, where Linux begins to take ports for outgoing connections.
    local port=${CM3_LOCAL_PORT:-$((20000 + RANDOM % 10000))}
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" > /dev/null || fail "$program is not installed: apt-get install slurm-wlm munge"
    done
    if [ -e "$dir" ] && [ -n "$(ls -A "$dir")" ]; then fail "$dir: not empty; slurm/local.sh down removes an earlier Slurm"; fi
    [ ${#dir} -le 90 ] || fail "$dir: the name is too long for munge's socket; choose a shorter DIR"
    for _ in 1 2 3 4 5; do # if another program has one of the ports, the next ports are tried
        mkdir -p "$dir"
        write_configuration "$nodes" "$cpus" "$port"
        start_daemons "$nodes"
        if wait_until_idle "$nodes"; then
            echo "export SLURM_CONF='$dir/slurm.conf' MASTER_ADDR=localhost" # node1, node2 are no host names
            return
        fi
        stop_daemons
        port_is_taken || break
        rm -rf "$dir"
        port=$((port + nodes + 1))
    done
    tail -n 5 "$dir"/*.log >&2 || true
    fail "Slurm did not start; its logs are in $dir"
}

down() {
    [ "$(head -n 1 "$dir/slurm.conf" 2> /dev/null)" = "$mark" ] || fail "$dir: no Slurm of slurm/local.sh here"
    export SLURM_CONF=$dir/slurm.conf
    scancel --quiet --user "$(id -un)" 2> /dev/null || true
    for _ in $(seq 60); do # KillWait is 30 s
        if [ -z "$(squeue -h 2> /dev/null)" ]; then break; fi
        sleep 0.5
    done
    scontrol shutdown 2> /dev/null || true
    stop_daemons
    rm -rf "$dir"
}

command=${1:-}
dir=$(realpath -m "${2:-.slurm-local}")
case $command in
    up | down) "$command" ;;
    *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
