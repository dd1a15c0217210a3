#!/bin/sh
# Starts a one-node SLURM for the tests on a Debian machine, as root: tests/slurm/start.sh
# Needs: apt-get install slurm-wlm munge. Leaves one that answers as it is.
set -eu
sinfo -h >/dev/null 2>&1 && exit 0
fail() { echo "make test-slurm: $1" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "no SLURM answers here, and only root can start one"
for program in slurmctld slurmd munged; do
  PATH="$PATH:/usr/sbin" command -v $program >/dev/null ||
    fail "there is no $program; apt-get install slurm-wlm munge"
done
PATH="$PATH:/usr/sbin"
host=$(hostname -s)
state=/var/lib/sparsebench-slurm
mkdir -p /etc/slurm $state/ctld $state/d /run/munge
chown munge: /run/munge
[ ! -e /etc/slurm/slurm.conf ] || grep -q sparsebench /etc/slurm/slurm.conf ||
  fail "/etc/slurm/slurm.conf is there, but its SLURM does not answer; start it, or move the file"

# cred_expire: a requeued job waits until its old credential is void, 120 s by default
cat >/etc/slurm/slurm.conf <<CONF
ClusterName=sparsebench
SlurmctldHost=$host
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldLogFile=$state/ctld.log
SlurmdLogFile=$state/d.log
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=20
NodeName=$host CPUs=$(getconf _NPROCESSORS_ONLN) State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
pidof munged >/dev/null || su -s /bin/sh munge -c /usr/sbin/munged
pidof slurmctld >/dev/null || slurmctld
pidof slurmd >/dev/null || slurmd
tries=30
until sinfo -h -o %t 2>/dev/null | grep -qE '^(idle|mix|alloc)'; do
  tries=$((tries - 1))
  [ $tries -gt 0 ] || fail "it did not come up; see $state/*.log"
  sleep 1
  scontrol update nodename="$host" state=resume 2>/dev/null || true
done
