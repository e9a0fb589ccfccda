#!/usr/bin/env bash
# Crashes, corruption, faults, hostile input, sanitizers, soak: the whole set, and one table of figures.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'USAGE'
usage: scripts/reliability.sh [--short] [--list] [STEP...]

Builds what is needed and runs every step, or those named; prints one table: tried, lost, undetected, seconds.

  --short   about 8 minutes on two idle cores: fewer cases, sanitizers from core to data, no clang-tidy, no soak.
            Without it: the full counts (10,000 bit flips, 1,000 + 200 kills, 1 M fuzz executions per target, 20,000 steps
            of soak), about two hours.
  --list    the names of the steps

lost: a checkpoint or a result that should be there and is not, a test that failed. undetected: damage that was read as if
it were sound, a finding of a fuzzer or sanitizer. Exit status: 0 all zero, 1 otherwise, 75 a tool is missing.
USAGE
}

all_steps=(crash corruption kill stop faults restart fuzz asan tsan tidy soak)
short=no steps=()
for argument in "$@"; do
  case "$argument" in
    --short) short=yes ;;
    --list) printf '%s\n' "${all_steps[@]}"; exit 0 ;;
    -h|--help) usage; exit 0 ;;
    -*) usage >&2; exit 64 ;;
    *)
      [[ " ${all_steps[*]} " == *" $argument "* ]] || { echo "reliability.sh: no step is called $argument" >&2; exit 64; }
      steps+=("$argument") ;;
  esac
done
if [ ${#steps[@]} = 0 ]; then
  steps=("${all_steps[@]}")
  [ "$short" = no ] || steps=(crash corruption kill stop faults restart fuzz asan tsan)
fi
pick() { if [ "$short" = yes ]; then echo "$2"; else echo "$1"; fi; }
[ "$short" = yes ] || export TGV2_RELIABILITY=full

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TGV2_TEST_DATA=$PWD/tests/data
case "${TRAIN_GPT_V2:-}" in
  ''|/*) ;;
  *) export TRAIN_GPT_V2=$caller/$TRAIN_GPT_V2 ;;  # named from where the caller stands
esac
export TGV2_BINARY=${TRAIN_GPT_V2:-$PWD/build/release/bin/train_gpt_v2}
export HOME=${HOME-~}  # cron and systemd leave it out; CMake looks there for what setup.sh fetched
jobs=$(nproc)
plain_layout=(env)
release=build/release/bin

build() { # PRESET TARGET...
  local preset=$1
  shift
  if ! { cmake --preset "$preset" && cmake --build --preset "$preset" -j "$jobs" --target "$@"; } >"$work/build.log" 2>&1; then
    tail -n 30 "$work/build.log" >&2
    echo "reliability.sh: the preset $preset does not build" >&2
    return 75
  fi
}

# gtest PROGRAM FILTER NAME: FIGURE lines of the tests themselves, or one for all where they print none.
gtest() {
  local log=$work/gtest.log status=0
  "${plain_layout[@]}" "$1" --gtest_filter="$2" >"$log" 2>&1 || status=$?
  grep '^FIGURE' "$log" || true
  local ran failed
  ran=$(sed -n 's/^\[==========\] \([0-9]*\) tests\{0,1\} from .* ran.*/\1/p' "$log" | tail -n 1)
  failed=$(grep -c '^\[  FAILED  \] [^ ]*\.[^ ]* (' "$log" || true)
  [ "$status" = 0 ] || [ "$failed" -gt 0 ] || failed=1
  if [ "$failed" -gt 0 ] || ! grep -q '^FIGURE' "$log"; then printf 'FIGURE\t%s\t%s\t%s\t0\n' "$3" "${ran:-?}" "$failed"; fi
  if [ "$status" != 0 ]; then tail -n 40 "$log" >&2; fi
}

# script NAME COMMAND...: a test script; its own figures, or one line.
script() {
  local name=$1 log=$work/script.log status=0
  shift
  "$@" >"$log" 2>&1 || status=$?
  grep '^FIGURE' "$log" || true
  if [ "$status" != 0 ]; then
    tail -n 20 "$log" >&2
    printf 'FIGURE\t%s\t1\t1\t0\n' "$name"
  elif ! grep -q '^FIGURE' "$log"; then
    printf 'FIGURE\t%s\t1\t0\t0\n' "$name"
  fi
}

step_crash() { build release reliability_test && gtest $release/reliability_test 'CheckpointFaults.*' 'checkpoint store'; }
step_corruption() {
  build release reliability_test io_test data_test || return
  gtest $release/reliability_test '*Corruption.*' 'corruption'
  gtest $release/reliability_test 'Bombs.*' 'allocation bombs'
  gtest $release/io_test 'HostileFile.*:Safetensors.*:Npy.*' 'hostile files'
}
step_kill() { build release train_gpt_v2 && script 'trainer: kill -9' bash tests/cli/kill_resume_test.sh "$(pick 200 12)"; }
step_stop() {
  build release train_gpt_v2 || return
  script 'signals and trigger files' bash tests/cli/signals_test.sh
  script 'trainer: stopped at random moments' bash tests/cli/stop_anywhere_test.sh "$(pick 60 12)"
}
step_faults() {
  build release train_gpt_v2 resume_test train_test core_test || return
  gtest $release/resume_test 'Faults.*' 'faults in training'
  gtest $release/train_test '*OutOfMemory*:CheckpointStore.*:TensorBoard.*Full*' 'memory and disk too small'
  script 'a full disk (tmpfs)' bash tests/cli/full_disk_test.sh
  script 'a data file that never opens' bash tests/cli/hang_test.sh
  gtest $release/core_test 'Watchdog.*:LostPages.*:RunLock.*' 'hangs, lost pages, run lock'
}
step_restart() {
  build release train_gpt_v2 || return
  script 'run_until_done.sh' bash tests/cli/run_until_done_test.sh
  script 'slurm.sbatch' bash tests/cli/slurm_test.sh
  script 'restart and rollback, the real program' bash tests/cli/restart_and_rollback_test.sh
}
step_fuzz() {
  if [ "$short" = no ]; then
    scripts/fuzz.sh || [ $? = 1 ]
  else
    build release fuzz_smoke && script 'fuzz smoke' $release/fuzz_smoke tests/fuzz/corpus 60
  fi
}
# Sanitizers of GCC 12 fail at random where addresses are randomised with many bits.
fix_layout() { if setarch -R true 2>/dev/null; then plain_layout=(setarch -R); fi; }
# halt_on_error: a report is a failure of the test that ran.
step_asan() {
  fix_layout
  local layers=(core config io data) layer
  [ "$short" = yes ] || layers+=(kernels model adapt train app)  # LibTorch itself is not instrumented
  build asan "${layers[@]/%/_test}" reliability_test fuzz_smoke || return
  export ASAN_OPTIONS=detect_leaks=1:halt_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
  for layer in "${layers[@]}"; do gtest "build/asan/bin/${layer}_test" '*' "ASan, UBSan: unit tests of $layer"; done
  gtest build/asan/bin/reliability_test '*Kth*:*Corruption.*:*Leftovers*' 'ASan, UBSan: checkpoint store' | sed 's/\t/\tASan: /'
  script 'ASan, UBSan: fuzz' "${plain_layout[@]}" build/asan/bin/fuzz_smoke tests/fuzz/corpus "$(pick 300 20)" | sed 's/\t/\tASan: /'
}
step_tsan() {
  fix_layout
  build tsan threads_test || return
  export TSAN_OPTIONS=halt_on_error=1
  gtest build/tsan/bin/threads_test 'BatchLoader.*:Dataset.Many*:Manifest.Many*' 'TSan: loader'
  gtest build/tsan/bin/threads_test '*Kth*:*Leftovers*' 'TSan: checkpoint writer' | sed 's/\t/\tTSan: /'
  gtest build/tsan/bin/threads_test '-BatchLoader.*:Dataset.*:Manifest.*:CheckpointFaults.*' 'TSan: core (logger, signals, watchdog)'
}
step_tidy() {
  local tool log=$work/tidy.log status=0 found
  for tool in clang-tidy clang++; do
    command -v "$tool" >/dev/null || { echo "reliability.sh: $tool is not installed: apt-get install clang clang-tidy" >&2; return 75; }
  done
  { cmake --preset tidy && cmake --build --preset tidy -j "$jobs" -- -k 0; } >"$log" 2>&1 || status=$?
  found=$(grep 'error: ' "$log" | sort -u | tee "$work/tidy.found" | wc -l || true)
  head -n 30 "$work/tidy.found" >&2
  if [ "$status" != 0 ] && [ "$found" = 0 ]; then tail -n 30 "$log" >&2; return 75; fi
  printf 'FIGURE\tclang-tidy: files, warnings\t%s\t0\t%s\n' "$(find src -name '*.cc' | wc -l)" "$found"
}
step_soak() { build release train_gpt_v2 && script 'soak' bash tests/reliability/soak.sh "$(pick 20000 2000)"; }

failed=0
printf '%-58s %9s %6s %11s %8s\n' what tried lost undetected seconds
for step in "${steps[@]}"; do
  begin=$(date +%s) status=0
  ("step_$step") >"$work/figures" || status=$?
  seconds=$(($(date +%s) - begin))
  [ "$status" = 0 ] || printf 'FIGURE\t%s could not be run (status %s)\t0\t1\t0\n' "$step" "$status" >>"$work/figures"
  while IFS=$'\t' read -r mark what tried lost undetected; do
    [ "$mark" = FIGURE ] || continue
    [ "$lost$undetected" = 00 ] || failed=1
    printf '%-58s %9s %6s %11s %8s\n' "$what" "$tried" "$lost" "$undetected" "$seconds"
    seconds=""  # of the whole step, beside its first line
  done <"$work/figures"
done
[ "$failed" = 0 ] || { echo "something was lost, undetected or failed: see above" >&2; exit 1; }
