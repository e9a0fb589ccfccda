#!/usr/bin/env bash
# Signals and trigger files (interface.md §7): saved, documented exit status, continued to the end.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
set -e
fail() { echo "FAILED: $*"; exit 1; }
program=${TGV2_BINARY:?ctest sets it}
fixtures=$root/tests/data/fixtures

python3 - "$fixtures" "$work/run.json" <<'PYTHON'
import json, sys
fixtures, out = sys.argv[1:]
model = json.load(open(fixtures + "/model/config.json"))["constructor"]
model.pop("use_accel")
json.dump({"model": model, "data": {"train_manifests": [fixtures + "/data/train_pairs.jsonl::am"],
                                    "val_manifests": [fixtures + "/data/val_pairs.jsonl"], "tokenizer": fixtures + "/tokenizer/extended.model"},
           "train": {"batch_size": 4, "max_steps": 1000000, "epochs": None, "num_threads": 1}, "optimizer": {"total_steps": 1000},
           "validation": {"interval": 50}, "checkpoint": {"interval": 0}, "logging": {"progress": "off", "tensorboard": False}}, open(out, "w"))
PYTHON

run=$work/run
start() { # waits until training has begun
  "$program" --config "$work/run.json" --output-dir "$run" --device cpu -q &
  pid=$!
  for _ in $(seq 300); do
    grep -qs '"event":"\(start\|resume\)"' "$run/metrics.jsonl" && break
    sleep 0.1
  done
  sleep 0.5
}
ended() { # STATUS: waits for the program and compares
  local status=0
  wait "$pid" || status=$?
  [ "$status" = "$1" ] || fail "exit status $status, wanted $1"
  [ -e "$run/latest.pt" ] || fail "nothing was saved"
  rm -f "$run/metrics.jsonl"
}

start; kill -TERM "$pid"; ended 143
start; kill -INT "$pid"; ended 130
start; kill -HUP "$pid"; ended 129
start; touch "$run/stop"; ended 130
[ ! -e "$run/stop" ] || fail "the stop file was not removed"

start
before=$(stat -c %i "$run/latest.pt")
kill -USR1 "$pid"
for _ in $(seq 100); do [ "$(stat -c %i "$run/latest.pt")" = "$before" ] || break; sleep 0.1; done
[ "$(stat -c %i "$run/latest.pt")" != "$before" ] || fail "USR1 did not save"
before=$(stat -c %i "$run/latest.pt")
touch "$run/save"
for _ in $(seq 100); do [ "$(stat -c %i "$run/latest.pt")" = "$before" ] || break; sleep 0.1; done
[ "$(stat -c %i "$run/latest.pt")" != "$before" ] || fail "the save file did not save"
kill -0 "$pid" || fail "it stopped"

# A second trainer in the same run directory is kept out.
status=0
"$program" --config "$work/run.json" --output-dir "$run" --device cpu -q 2>"$work/second" || status=$?
[ "$status" = 75 ] || fail "the second trainer ended with $status"
grep -q 'IO005' "$work/second" || fail "the second trainer said: $(cat "$work/second")"
kill -TERM "$pid"; ended 143
[ ! -e "$run/DONE" ] || fail "DONE was written"
echo "all signals honoured"
