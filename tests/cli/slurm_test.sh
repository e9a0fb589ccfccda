#!/usr/bin/env bash
# scripts/slurm.sbatch with fakes of srun and scontrol: what is put back into the queue, and what is not.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
script=$root/scripts/slurm.sbatch

mkdir "$work/bin"
cat >"$work/bin/srun" <<'SRUN'
#!/usr/bin/env bash
[ "$1" = --ntasks=1 ] && shift
echo "${SRUN_CPUS_PER_TASK:-}" >"$WORK/cores"
exec "$@"
SRUN
cat >"$work/bin/scontrol" <<'SCONTROL'
#!/usr/bin/env bash
[ ! -e "$WORK/refuse" ] || exit 1
echo "$*" >>"$WORK/requeued"
SCONTROL
cat >"$work/program" <<'PROGRAM'
#!/usr/bin/env bash
[ "$1" = --config ] || exit 64
[ "$2" != KILL ] || kill -KILL $$
exit "$2"
PROGRAM
chmod +x "$work/bin/srun" "$work/bin/scontrol" "$work/program"
export WORK=$work TRAIN_GPT_V2=$work/program SLURM_JOB_ID=77 PATH=$work/bin:$PATH

for status_wanted in 75 83 129 143 KILL; do
  rm -f "$work/requeued"
  fails_with 0 "status $status_wanted is requeued" "$script" --config "$status_wanted"
  check "job 77 is back in the queue" grep -qx "requeue 77" "$work/requeued"
done
rm -f "$work/requeued"
for status_wanted in 0 64 65 66 70 73 74 78 80 82 130; do
  fails_with "$status_wanted" "status $status_wanted ends the job" "$script" --config "$status_wanted"
done
SLURM_CPUS_PER_TASK=16 fails_with 0 "with many cores" "$script" --config 0
check "the step has the job's cores" test "$(cat "$work/cores")" = 16
touch "$work/refuse"
fails_with 83 "a refused requeue ends the job with the program's status" "$script" --config 83
check "it is said" says "did not requeue"
rm "$work/refuse"
export SLURM_RESTART_COUNT=3 MAX_RESTARTS=3
fails_with 75 "the limit of restarts" "$script" --config 75
check "nothing was requeued" test ! -e "$work/requeued"
check "Slurm is asked for a warning before the limit" grep -q '^#SBATCH --signal=TERM@120$' "$script"
check "and for a requeue" grep -q '^#SBATCH --requeue$' "$script"
fails_with 0 "--help" "$script" --help
check "the help shows the call" says "sbatch scripts/slurm.sbatch --config"
fails_with 64 "no arguments" "$script"
fails_with 64 "no program" env TRAIN_GPT_V2=/nowhere "$script" --config 0
finish
