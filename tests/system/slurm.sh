#!/usr/bin/env bash
# A real one-node Slurm on loopback, without systemd: slurm.sh start DIR | stop DIR. Root, Debian.
#
# Two fake GPUs (character devices that behave like /dev/null), two partitions, no accounting.
set -euo pipefail
action=$1
dir=$(realpath -m "$2")
node=$(hostname -s)

stop_daemons() {
  for daemon in slurmd slurmctld; do
    pid_file="$dir/run/$daemon.pid"
    [ -s "$pid_file" ] && kill "$(cat "$pid_file")" 2>/dev/null || true
  done
}

write_configuration() {
  mkdir -p "$dir"/{etc,state,spool,log,run,dev}
  cpus=$(getconf _NPROCESSORS_ONLN) # nproc would heed OMP_NUM_THREADS
  memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 - 512))
  : >"$dir/etc/gres.conf"
  for gpu in 0 1; do
    # Slurm 22.05 refuses a GPU without a device file, and a plain file for one.
    [ -c "$dir/dev/gpu$gpu" ] || mknod "$dir/dev/gpu$gpu" c 1 3
    echo "NodeName=$node Name=gpu File=$dir/dev/gpu$gpu" >>"$dir/etc/gres.conf"
  done
  cat >"$dir/etc/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=26817
SlurmdPort=26818
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
MpiDefault=none
# linuxproc would add a minute to every kill
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdTimeout=10
KillWait=20
UnkillableStepTimeout=5
MinJobAge=3600
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=$node MaxTime=60 State=UP
CONF
  # In /etc/slurm and not in SLURM_CONF, which the job-step plugin drops from the environment.
  mkdir -p /etc/slurm
  ln -sfn "$dir/etc/slurm.conf" /etc/slurm/slurm.conf
  ln -sfn "$dir/etc/gres.conf" /etc/slurm/gres.conf
}

start_munge() {
  install -d -o munge -g munge -m 0755 /run/munge
  if [ ! -s /etc/munge/munge.key ]; then
    head -c 1024 /dev/urandom >/etc/munge/munge.key
    chown munge: /etc/munge/munge.key
    chmod 400 /etc/munge/munge.key
  fi
  munge -n >/dev/null 2>&1 || runuser -u munge -- /usr/sbin/munged
  for _ in $(seq 50); do munge -n >/dev/null 2>&1 && return; sleep 0.1; done
  echo "munge does not start" >&2
  exit 1
}

case $action in
  start)
    unset SLURM_CONF
    start_munge
    write_configuration
    slurmctld
    slurmd
    for _ in $(seq 150); do
      [ "$(sinfo -h -N -p main -o %t 2>/dev/null)" = idle ] && exit 0
      sleep 0.1
    done
    echo "the node does not become idle; logs are in $dir/log" >&2
    exit 1
    ;;
  stop) stop_daemons ;;
  *)
    echo "usage: slurm.sh start|stop DIR" >&2
    exit 2
    ;;
esac
