#!/usr/bin/env bash
# A Slurm of your own on this machine, to try the scripts of this folder with. Nothing outside of its folder is touched.
#
#   apt-get install slurm-wlm munge          # once; Debian and Ubuntu
#   eval "$(slurm/local.sh up)"              # sets SLURM_CONF, so that sbatch, squeue and scancel talk to it
#   slurm/local.sh down
#
# usage: slurm/local.sh up|down [DIR]        DIR: by default .slurm-local
#   CM3_LOCAL_NODES=2   nodes; several of them are several slurmd on this machine
#   CM3_LOCAL_CPUS=4    CPUs a node, whatever the machine has; by default all of them
set -euo pipefail
mark="# written by slurm/local.sh"

fail() { echo "error: $*" >&2; exit 2; }

free_ports() { # N ports that nobody listens on
    python3 - "$1" <<'END'
import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(one.getsockname()[1] for one in held))
END
}

write_configuration() {
    local nodes=$1 cpus=$2 ports memory user
    read -ra ports <<< "$(free_ports $((nodes + 1)))"
    memory=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
    user=$(id -un)
    cat > "$dir/slurm.conf" <<END
$mark
ClusterName=local
SlurmctldHost=localhost
SlurmctldPort=${ports[0]}
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
    for ((node = 1; node <= nodes; node++)); do
        mkdir -p "$dir/spool-node$node"
        echo "NodeName=node$node NodeHostname=localhost NodeAddr=127.0.0.1 Port=${ports[$node]}" \
            "CPUs=$cpus RealMemory=$memory" >> "$dir/slurm.conf"
    done
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP" >> "$dir/slurm.conf"
}

up() {
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" > /dev/null || fail "$program is not installed: apt-get install slurm-wlm munge"
    done
    if [ -e "$dir" ] && [ -n "$(ls -A "$dir")" ]; then
        fail "$dir: not empty; slurm/local.sh down takes an earlier one down"
    fi
    mkdir -p "$dir/state"
    [ ${#dir} -le 90 ] || fail "$dir: the name is too long for munge's socket; choose a shorter DIR"
    local nodes=${CM3_LOCAL_NODES:-1}
    write_configuration "$nodes" "${CM3_LOCAL_CPUS:-$(nproc)}"
    (umask 077 && head -c 1024 /dev/urandom > "$dir/munge.key")
    {
        munged --force --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/munged.pid" \
            --log-file="$dir/munged.log" --seed-file="$dir/munge.seed"
        slurmctld -f "$dir/slurm.conf"
        for ((node = 1; node <= nodes; node++)); do slurmd -f "$dir/slurm.conf" -N "node$node"; done
    } >&2
    for _ in $(seq 60); do
        if [ "$(SLURM_CONF=$dir/slurm.conf sinfo -h -o %T -t idle 2> /dev/null | wc -l)" -gt 0 ]; then
            [ "$(SLURM_CONF=$dir/slurm.conf sinfo -h -t idle -o %D)" = "$nodes" ] && {
                echo "export SLURM_CONF='$dir/slurm.conf'"
                return
            }
        fi
        sleep 0.5
    done
    tail -n 5 "$dir"/*.log >&2
    fail "Slurm did not come up within 30 s; its logs are in $dir"
}

down() {
    [ "$(head -n 1 "$dir/slurm.conf" 2> /dev/null)" = "$mark" ] || fail "$dir: no Slurm of slurm/local.sh here"
    export SLURM_CONF=$dir/slurm.conf
    scancel --quiet --user "$(id -un)" 2> /dev/null || true
    for _ in $(seq 60); do # KillWait is 30 s
        [ -z "$(squeue -h 2> /dev/null)" ] && break
        sleep 0.5
    done
    scontrol shutdown 2> /dev/null || true
    local pid
    for file in "$dir"/slurm*.pid; do
        [ -e "$file" ] || continue
        pid=$(cat "$file")
        kill "$pid" 2> /dev/null || true
        for _ in $(seq 50); do kill -0 "$pid" 2> /dev/null && sleep 0.1 || break; done
    done
    munged --socket="$dir/munge.sock" --stop > /dev/null 2>&1 || true
    rm -rf "$dir"
}

command=${1:-}
dir=$(realpath -m "${2:-.slurm-local}")
case $command in
    up | down) "$command" ;;
    *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
