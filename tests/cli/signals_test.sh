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
  env --default-signal=HUP "$program" --config "$work/run.json" --output-dir "$run" --device cpu -q &  # even under nohup
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
kill -TERM "$pid"; ended 143

# In every phase.
begin() { # RUN CHANGES: starts in a run directory of its own, waits for the handlers
  write_config "$work/$1.json" "$2"
  run=$work/$1
  env --default-signal=HUP "$program" --config "$work/$1.json" --output-dir "$run" --device cpu -q &
  pid=$!
  for _ in $(seq 300); do ! handles_signals "$pid" || return 0; sleep 0.01; done
  fail "no handlers were set"
}
until_there() { # FILE
  for _ in $(seq 3000); do [ ! -e "$1" ] || return 0; sleep 0.01; done
  fail "$1 never came"
}

begin at_start '{"train": {"max_steps": 100000, "epochs": null}, "optimizer": {"schedule": "constant"}}'
kill -TERM "$pid"; ended 143

# While train.batch_size "auto" is measured: nothing is trained yet, and a size that was not measured must not be kept.
export XDG_CACHE_HOME=$work/cache
begin probing '{"train": {"batch_size": "auto", "effective_batch": 16384, "max_steps": 100000, "epochs": null},
  "optimizer": {"schedule": "constant"}}'
until_there "$run/log.txt"
sleep 1
kill -0 "$pid" || fail "the probe was over too soon"
kill -TERM "$pid"
for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
! kill -0 "$pid" 2>/dev/null || fail "the probe did not stop"
status=0; wait "$pid" || status=$?
[ "$status" = 143 ] || fail "exit status $status while measuring, wanted 143"
[ ! -e "$run/latest.pt" ] || fail "a batch size was kept that was not measured"
[ ! -e "$work/cache/train_gpt_v2" ] || fail "a batch size that was not measured is remembered"

# While it samples: the folder of the step is there, and its sheet, which is written last, is not.
begin sampling '{"train": {"max_steps": 100000, "epochs": null}, "optimizer": {"schedule": "constant"},
  "sampling": {"interval": 2, "count": 16, "max_codes": 300, "num_beams": 8}}'
until_there "$run/samples/step_2"
kill -INT "$pid"; ended 130
[ ! -e "$run/samples/step_2/notes.json" ] || fail "sampling was over before the signal came"

# While it validates, every step.
begin validating '{"train": {"max_steps": 100000, "epochs": null, "log_interval": 1}, "optimizer": {"schedule": "constant"},
  "validation": {"interval": 1, "text_usage_gap": true, "batch_size": 1}}'
until_there "$run/best_model.pth"
kill -HUP "$pid"; ended 129

# Between the validation of the weights and that of their averages: both are done again, and nothing stands there twice.
averages='{"train": {"max_steps": 100000, "epochs": null}, "optimizer": {"schedule": "constant"}, "ema": {"enabled": true},
  "data": {"val_manifests": ["'"$fixtures"'/data/train_pairs.jsonl"]},
  "validation": {"interval": 1, "batch_size": 1}, "checkpoint": {"interval": 0}}'
raw_lines() { cat "$work/averages/metrics.jsonl" 2>/dev/null | grep -c '"weights":"raw"' || true; }
for _ in 1 2 3; do
  before=$(raw_lines)
  begin averages "$averages"
  for _ in $(seq 3000); do [ "$(raw_lines)" -le "$before" ] || break; done
  kill -TERM "$pid"
  status=0; wait "$pid" || status=$?
  [ "$status" = 143 ] || fail "exit status $status, wanted 143"
done
python3 - "$run/metrics.jsonl" <<'PYTHON'
import collections, json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
seen = collections.Counter((line["step"], line["weights"], line["split"]) for line in lines if line["type"] == "validation")
assert seen and max(seen.values()) == 1, seen
PYTHON

# While it saves: the temporary file is there.
begin saving '{"train": {"max_steps": 100000, "epochs": null}, "optimizer": {"schedule": "constant"},
  "checkpoint": {"interval": 1}}'
for _ in $(seq 3000); do compgen -G "$run/model_step*.tmp.*" >/dev/null && break; done
kill -TERM "$pid"; ended 143
! compgen -G "$run/model_step*.tmp.*" >/dev/null || fail "a temporary file was left"
"$program" inspect --verify "$run/latest.pt" >/dev/null || fail "latest.pt is not sound"

# While `check` has its own checkpoint on the disk.
"$program" check --config "$work/saving.json" --output-dir "$work/checked" --device cpu >"$work/check.txt" 2>&1 &
pid=$!
for _ in $(seq 30000); do compgen -G "$work/.train_gpt_v2_check.*" >/dev/null && break; done
kill -TERM "$pid"
status=0; wait "$pid" || status=$?
[ "$status" = 143 ] || fail "check ended with $status, wanted 143: $(cat "$work/check.txt")"
! compgen -G "$work/.train_gpt_v2_check.*" >/dev/null || fail "check left its file"

run=$work/run
start
# A second trainer in the same run directory is kept out.
status=0
"$program" --config "$work/run.json" --output-dir "$run" --device cpu -q 2>"$work/second" || status=$?
[ "$status" = 75 ] || fail "the second trainer ended with $status"
grep -q 'IO005' "$work/second" || fail "the second trainer said: $(cat "$work/second")"
kill -TERM "$pid"; ended 143
[ ! -e "$run/DONE" ] || fail "DONE was written"
echo "all signals honoured"
