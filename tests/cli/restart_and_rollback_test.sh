#!/usr/bin/env bash
# run_until_done.sh, rollback.sh and report with the real program: killed twice, finished; taken back, finished again.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
export TRAIN_GPT_V2=${TGV2_BINARY:?ctest sets it}
run=$work/run

python3 - "$root/tests/data/fixtures" "$work/run.json" <<'PYTHON'
import json, sys
fixtures, out = sys.argv[1:]
model = json.load(open(fixtures + "/model/config.json"))["constructor"]
model.pop("use_accel")
json.dump({"model": model, "init": {"from": fixtures + "/model/gpt.pth"},
           "data": {"train_manifests": [fixtures + "/data/train_pairs.jsonl::am"], "val_manifests": [fixtures + "/data/val_pairs.jsonl"],
                    "tokenizer": fixtures + "/tokenizer/extended.model"},
           "train": {"batch_size": 4, "grad_accumulation": 2, "max_steps": 30, "log_interval": 5, "num_threads": 1},
           "optimizer": {"learning_rate": 2e-4, "warmup_steps": 5}, "validation": {"interval": 10},
           "checkpoint": {"interval": 5, "keep": 10}, "logging": {"progress": "off"}}, open(out, "w"))
PYTHON

"$root/scripts/run_until_done.sh" --first-wait 0 --tries 10 -- \
  train_gpt_v2 --config "$work/run.json" --output-dir "$run" --device cpu >"$work/out" 2>"$work/err" &
pid=$!
killed=0
for after in 5 15; do
  for _ in $(seq 600); do
    [ -e "$run/model_step$after.pth" ] && break
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  child=$(pgrep -P "$pid" | head -n 1) || child=""
  if [ -n "$child" ] && kill -KILL "$child" 2>/dev/null; then killed=$((killed + 1)); fi
done
status=0
wait "$pid" || status=$?
check "done after $killed kills: $(tail -n 3 "$work/err")" test "$status" = 0
check "the DONE mark is there" test -e "$run/DONE"
# A kill may hit a process that had just written its DONE mark: then nobody starts it again.
restarts=$(grep -c 'starting again' "$work/err")
check "a restart for a kill: $restarts for $killed" test "$restarts" -ge 1 -a "$restarts" -le "$killed"
check "at least one kill hit" test "$killed" -ge 1
check "one line per log interval" test "$(grep -c '"type":"train"' "$run/metrics.jsonl")" = 6

# Back to step 20: the command that is printed goes on from there and finishes.
printf 'x' | dd of="$run/model_step25.pth" bs=1 seek=100000 conv=notrunc status=none
status_of "$root/scripts/rollback.sh" "$run" --to 25
check "a damaged checkpoint is refused ($status)" test "$status" = 65
status_of "$root/scripts/rollback.sh" "$run" --to 20
check "rolled back: $(cat "$work/err")" test "$status" = 0
check "nothing later is left" test -z "$(ls "$run"/model_step25.pth "$run"/model_step3*.pth "$run"/DONE 2>/dev/null)"
check "latest is step 20" test "$run/latest.pt" -ef "$run/model_step20.pth"
status_of bash -c "$(cat "$work/out") --device cpu"
check "the printed command finishes ($status): $(tail -n 3 "$work/err")" test "$status" = 0
check "it went on from step 20" grep -q '"step":20,"event":"resume"' "$run/metrics.jsonl"
check "done again" test -e "$run/DONE"
check "still one line per log interval" test "$(grep -c '"type":"train"' "$run/metrics.jsonl")" = 6

status_of "$TRAIN_GPT_V2" report "$run" --output "$work/report.html" --json
check "report ($status): $(cat "$work/err")" test "$status" = 0
check "report read every line" grep -q '"problems": \[\]' "$work/out"
check "the page shows the rollback" grep -q '>rollback</span>' "$work/report.html"
finish
