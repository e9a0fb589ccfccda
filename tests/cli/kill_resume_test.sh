#!/usr/bin/env bash
# kill -9 at random moments, the same command again, until the run is done: with all six improvements of phase 1 on, the
# weights are those of an undisturbed run.
# usage: kill_resume_test.sh [KILLS]; after a run is done, further kills go to a new one.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
set -e
fail() { echo "FAILED: $*"; exit 1; }
program=${TGV2_BINARY:?ctest sets it}
kills=${1:-4}

write_config "$work/run.json" '{"model": {"dropout": 0.1}, "sampler": {"mode": "buckets", "boundaries": [20, 30, 40, 60]},
  "train": {"grad_accumulation": 2, "max_steps": 90, "log_interval": 5, "grad_clip": 0.5}, "optimizer": {"warmup_steps": 5},
  "ema": {"enabled": true, "update_every": 2}, "validation": {"interval": 20},
  "early_stopping": {"enabled": true, "patience": 1000}, "checkpoint": {"interval": 3}}'
"$program" --config "$work/run.json" --output-dir "$work/whole" --device cpu -q

# The step of the newest checkpoint: what is published must never get older.
newest() {
  local file step best=-1
  for file in "$1"/model_step*.pth; do
    step=${file##*/model_step}
    [ ! -e "$file" ] || [ "${step%.pth}" -le "$best" ] || best=${step%.pth}
  done
  echo "$best"
}
begun() { grep -cs '"event":"\(start\|resume\)"' "$1/metrics.jsonl" || true; }

killed=0 round=0 older=0
while [ "$killed" -lt "$kills" ]; do
  round=$((round + 1)) parts=$work/parts$round
  for ((starts = 0; starts < 400; ++starts)); do
    before=$(newest "$parts") begun_before=$(begun "$parts")
    "$program" --config "$work/run.json" --output-dir "$parts" --device cpu -q &
    pid=$!
    if [ "$killed" -lt "$kills" ]; then
      # One in eight falls into the start, the others into training, validating and saving.
      while [ $((starts % 8)) != 7 ] && kill -0 "$pid" 2>/dev/null && [ "$(begun "$parts")" = "$begun_before" ]; do sleep 0.05; done
      sleep "$(awk -v r=$RANDOM 'BEGIN { print r / 32768 * 0.5 }')"
      if kill -9 "$pid" 2>/dev/null; then killed=$((killed + 1)); fi
    fi
    wait "$pid" 2>/dev/null || true
    [ "$(newest "$parts")" -ge "$before" ] || older=$((older + 1))
    [ ! -e "$parts/DONE" ] || break
  done
  [ -e "$parts/DONE" ] || fail "not done after $starts starts"
  [ "$older" = 0 ] || fail "the newest checkpoint became older"

  # Bit by bit, section by section: weights, moments, averages, counters; and the best weights.
  for name in latest.pt best_model.pth; do
    "$program" inspect --json "$work/whole/$name" "$parts/$name" >"$work/difference.json"
    python3 - "$work/difference.json" <<'PYTHON'
import json, sys
report = json.load(open(sys.argv[1]))
text = json.dumps(report)
differing = [name for name in ("model.", "optimizer.", "ema_state.") if '"' + name in text]
assert not differing and report["equal"] > 0, text[:2000]
PYTHON
  done
  steps=$(grep -c '"type":"train"' "$parts/metrics.jsonl")
  [ "$steps" = "$(grep -c '"type":"train"' "$work/whole/metrics.jsonl")" ] || fail "metrics.jsonl has $steps training lines"
  ! compgen -G "$parts/*.tmp.*" >/dev/null || fail "temporary files were left: $(ls "$parts")"
  rm -rf "$parts"
done
printf 'FIGURE\ttrainer: kill -9 at random moments\t%s\t%s\t0\n' "$killed" "$older"
echo "killed $killed times, identical"
