#!/usr/bin/env bash
# kill -9 at random moments, the same command again, until the run is done: the weights are those of an undisturbed run.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
set -e
fail() { echo "FAILED: $*"; exit 1; }
program=${TGV2_BINARY:?ctest sets it}
fixtures=$root/tests/data/fixtures
kills=${1:-4}

python3 - "$fixtures" "$work/run.json" <<'PYTHON'
import json, sys
fixtures, out = sys.argv[1:]
model = json.load(open(fixtures + "/model/config.json"))["constructor"]
model.pop("use_accel")
model["dropout"] = 0.1
json.dump({"model": model, "init": {"from": fixtures + "/model/gpt.pth"},
           "data": {"train_manifests": [fixtures + "/data/train_pairs.jsonl::am"], "val_manifests": [fixtures + "/data/val_pairs.jsonl"],
                    "tokenizer": fixtures + "/tokenizer/extended.model"},
           "train": {"batch_size": 4, "grad_accumulation": 2, "max_steps": 60, "log_interval": 5, "num_threads": 1},
           "optimizer": {"learning_rate": 2e-4, "warmup_steps": 5}, "ema": {"enabled": True},
           "validation": {"interval": 20}, "checkpoint": {"interval": 3}, "logging": {"progress": "off", "tensorboard": False}},
          open(out, "w"))
PYTHON

"$program" --config "$work/run.json" --output-dir "$work/whole" --device cpu -q
killed=0
for ((i = 0; i < 200; ++i)); do
  "$program" --config "$work/run.json" --output-dir "$work/parts" --device cpu -q &
  pid=$!
  if [ "$killed" -lt "$kills" ]; then
    sleep "$(awk -v r=$RANDOM 'BEGIN { print 0.5 + r / 32768 * 0.7 }')"
    if kill -9 "$pid" 2>/dev/null; then killed=$((killed + 1)); fi
  fi
  wait "$pid" 2>/dev/null || true
  [ ! -e "$work/parts/DONE" ] || break
done
[ -e "$work/parts/DONE" ] || fail "not done after $i starts"

# Bit by bit, section by section: weights, moments, averages, counters.
"$program" inspect --json "$work/whole/latest.pt" "$work/parts/latest.pt" >"$work/difference.json"
python3 - "$work/difference.json" <<'PYTHON'
import json, sys
report = json.load(open(sys.argv[1]))
text = json.dumps(report)
differing = [name for name in ("model.", "optimizer.", "ema_state.") if '"' + name in text]
assert not differing, text[:2000]
PYTHON
steps=$(grep -c '"type":"train"' "$work/parts/metrics.jsonl")
[ "$steps" = "$(grep -c '"type":"train"' "$work/whole/metrics.jsonl")" ] || fail "metrics.jsonl has $steps training lines"
if ls "$work/parts"/*.tmp.* >/dev/null 2>&1 && [ "$killed" = 0 ]; then fail "temporary files were left"; fi
echo "killed $killed times, identical"
