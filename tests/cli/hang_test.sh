#!/usr/bin/env bash
# A data file that never opens (strace holds the call): the watchdog leaves with 83, and a rerun finishes the run.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
set -e
program=${TGV2_BINARY:?ctest sets it}
fail() { echo "FAILED: $*"; cat "$work/err"; exit 1; }
strace -o /dev/null true 2>/dev/null || { echo "skipped: strace cannot be used here"; exit 0; }
write_config "$work/run.json" '{"train": {"max_steps": 30}, "validation": {"interval": 0}, "checkpoint": {"interval": 1}}'

# The codes of the last pair of the epoch, so that a few steps come first.
codes=$root/tests/data/fixtures/data/codes/spk003_000004.npy
status=0 begin=$SECONDS
timeout -s KILL 120 strace -f -qq -o /dev/null -P "$codes" -e trace=openat -e inject=openat:delay_enter=15000000 \
  "$program" --config "$work/run.json" --output-dir "$work/run" --device cpu --hang-seconds 2 2>"$work/err" || status=$?
took=$((SECONDS - begin))
[ "$status" = 83 ] || fail "status $status, wanted 83"
grep -q 'error\[HNG001\]' "$work/err" || fail "no HNG001"
grep -q 'waiting for the data loader' "$work/err" || fail "it did not say where it hung"
"$program" --config "$work/run.json" --output-dir "$work/run" --device cpu -q
[ -e "$work/run/DONE" ] || fail "the rerun did not finish"
echo "a hang was ended after $took s"
