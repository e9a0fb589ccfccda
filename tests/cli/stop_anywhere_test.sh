#!/usr/bin/env bash
# Signals at any moment, from the first instant on: saved within the grace time, the documented status, and after the
# same command again the weights are those of an undisturbed run. usage: stop_anywhere_test.sh [STOPS]
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
set -e
fail() { echo "FAILED: $*"; exit 1; }
program=${TGV2_BINARY:?ctest sets it}
stops=${1:-8}

# Validation and saving take a large part of the time, so that signals meet them.
write_config "$work/run.json" '{"train": {"max_steps": 600, "epochs": null, "log_interval": 20, "grad_accumulation": 2},
  "validation": {"interval": 10, "text_usage_gap": true}, "optimizer": {"warmup_steps": 5}, "checkpoint": {"interval": 5}, "ema": {"enabled": true}}'
"$program" --config "$work/run.json" --output-dir "$work/whole" --device cpu -q

run=$work/parts
compare() { # the finished $run with the whole one
  "$program" inspect --json "$work/whole/latest.pt" "$run/latest.pt" >"$work/difference.json"
  python3 - "$work/difference.json" <<'PYTHON'
import json, sys
text = json.dumps(json.load(open(sys.argv[1])))
differing = [name for name in ("model.", "optimizer.", "ema_state.") if '"' + name in text]
assert not differing, text[:2000]
PYTHON
  for kind in train validation; do
    [ "$(grep -c "\"type\":\"$kind\"" "$run/metrics.jsonl")" = "$(grep -c "\"type\":\"$kind\"" "$work/whole/metrics.jsonl")" ] ||
      fail "metrics.jsonl: another number of $kind lines"
  done
}

signals=(TERM INT HUP USR1)
statuses=(143 130 129 0)
slowest=0 stopped=0 runs=0
for ((i = 0; stopped < stops; ++i)); do
  [ "$i" -lt $((20 * stops)) ] || fail "only $stopped signals met the program"
  signal=${signals[i % 4]} wanted=${statuses[i % 4]}
  env --default-signal=HUP,INT "$program" --config "$work/run.json" --output-dir "$run" --device cpu -q 2>"$work/err" &
  pid=$!
  sleep "$(awk -v r=$RANDOM 'BEGIN { print r / 32768 * 1.2 }')"
  handlers=no
  ! handles_signals "$pid" || handlers=yes
  begin=$(date +%s%N)
  kill -s "$signal" "$pid" 2>/dev/null || true
  if [ "$signal" = USR1 ] && [ "$handlers" = yes ]; then
    sleep 0.3
    kill -TERM "$pid" 2>/dev/null || true  # it goes on, so it is stopped by another one
    wanted=143
  fi
  status=0
  wait "$pid" || status=$?
  took=$((($(date +%s%N) - begin) / 1000000))
  [ "$took" -le "$slowest" ] || slowest=$took
  if [ -e "$run/DONE" ]; then  # the signal came too late for this run; the next ones meet another
    [ "$status" = 0 ] || [ "$status" = "$wanted" ] || fail "DONE with status $status"
    compare
    runs=$((runs + 1))
    run=$work/parts$runs
    continue
  fi
  if [ "$handlers" = yes ]; then
    [ "$status" = "$wanted" ] || fail "SIG$signal: status $status, wanted $wanted: $(cat "$work/err")"
    [ -e "$run/latest.pt" ] || fail "SIG$signal: nothing was saved"
    stopped=$((stopped + 1))
  fi
done
[ "$slowest" -lt 10000 ] || fail "a stop took $slowest ms"

for ((i = 0; i < 3; ++i)); do
  [ ! -e "$run/DONE" ] || break
  "$program" --config "$work/run.json" --output-dir "$run" --device cpu -q
done
compare
printf 'FIGURE\ttrainer: stopped by signals at random moments\t%s\t0\t0\n' "$stops"
echo "stopped $stopped times over $((runs + 1)) runs, the slowest took $slowest ms, identical"
