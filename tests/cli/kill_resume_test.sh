#!/usr/bin/env bash
# kill -9 at random moments, the same command again, until the run is done: with all six improvements of phase 1 on, the
# weights are those of an undisturbed run. Argument: how many kills (4).
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
set -e
fail() { echo "FAILED: $*"; exit 1; }
program=${TGV2_BINARY:?ctest sets it}
fixtures=$root/tests/data/fixtures
kills=${1:-4}

python3 - "$fixtures" "$work/run.json" $((kills * 30)) <<'PYTHON'
import json, sys
fixtures, out, steps = sys.argv[1:]
model = json.load(open(fixtures + "/model/config.json"))["constructor"]
model.pop("use_accel")
model["dropout"] = 0.1
json.dump({"model": model, "init": {"from": fixtures + "/model/gpt.pth"},
           "data": {"train_manifests": [fixtures + "/data/train_pairs.jsonl::am"], "val_manifests": [fixtures + "/data/val_pairs.jsonl"],
                    "tokenizer": fixtures + "/tokenizer/extended.model"},
           "sampler": {"mode": "buckets", "boundaries": [20, 30, 40, 60]},
           "train": {"batch_size": 4, "grad_accumulation": 2, "max_steps": int(steps), "log_interval": 5, "num_threads": 1, "grad_clip": 0.5},
           "optimizer": {"learning_rate": 2e-4, "warmup_steps": 5}, "ema": {"enabled": True, "update_every": 2},
           "validation": {"interval": 20}, "early_stopping": {"enabled": True, "patience": 1000},
           "checkpoint": {"interval": 3}, "logging": {"progress": "off", "tensorboard": False}},
          open(out, "w"))
PYTHON

"$program" --config "$work/run.json" --output-dir "$work/whole" --device cpu -q
begun() { grep -cs '"event":"\(start\|resume\)"' "$work/parts/metrics.jsonl" || true; }
killed=0
for ((i = 0; i < 200; ++i)); do
  before=$(begun)
  "$program" --config "$work/run.json" --output-dir "$work/parts" --device cpu -q &
  pid=$!
  if [ "$killed" -lt "$kills" ]; then
    # One in eight falls into the start, the others into training, validating and saving.
    while [ $((i % 8)) != 7 ] && kill -0 "$pid" 2>/dev/null && [ "$(begun)" = "$before" ]; do sleep 0.05; done
    sleep "$(awk -v r=$RANDOM 'BEGIN { print r / 32768 * 0.5 }')"
    if kill -9 "$pid" 2>/dev/null; then killed=$((killed + 1)); fi
  fi
  wait "$pid" 2>/dev/null || true
  [ ! -e "$work/parts/DONE" ] || break
done
[ -e "$work/parts/DONE" ] || fail "not done after $i starts"
[ "$killed" -ge $(((kills + 1) / 2)) ] || fail "only $killed kills hit"

# Bit by bit, section by section: weights, moments, averages, counters; and the best weights.
for name in latest.pt best_model.pth; do
  "$program" inspect --json "$work/whole/$name" "$work/parts/$name" >"$work/difference.json"
  python3 - "$work/difference.json" <<'PYTHON'
import json, sys
report = json.load(open(sys.argv[1]))
text = json.dumps(report)
differing = [name for name in ("model.", "optimizer.", "ema_state.") if '"' + name in text]
assert not differing and report["equal"] > 0, text[:2000]
PYTHON
done
steps=$(grep -c '"type":"train"' "$work/parts/metrics.jsonl")
[ "$steps" = "$(grep -c '"type":"train"' "$work/whole/metrics.jsonl")" ] || fail "metrics.jsonl has $steps training lines"
if ls "$work/parts"/*.tmp.* >/dev/null 2>&1 && [ "$killed" = 0 ]; then fail "temporary files were left"; fi
echo "killed $killed times, identical"
