#!/usr/bin/env bash
# rollback.sh with the real program: improvements are switched on in a run, the run is taken back, and the next 20 steps
# are those of a run that never had them, bit by bit.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
export TRAIN_GPT_V2=${TGV2_BINARY:?ctest sets it}
run=$work/run never=$work/never

python3 - "$root/tests/data/fixtures" "$work/plain.json" "$work/improved.json" <<'PYTHON'
import json, sys
fixtures, plain, improved = sys.argv[1:]
model = json.load(open(fixtures + "/model/config.json"))["constructor"]
model.pop("use_accel")
model["dropout"] = 0.1
config = {"model": model, "init": {"from": fixtures + "/model/gpt.pth"},
          "data": {"train_manifests": [fixtures + "/data/train_pairs.jsonl::am"], "val_manifests": [fixtures + "/data/val_pairs.jsonl"],
                   "tokenizer": fixtures + "/tokenizer/extended.model"},
          "sampler": {"mode": "shuffle"},
          "train": {"batch_size": 4, "max_steps": 1000, "log_interval": 1, "num_threads": 1, "grad_clip": 0},
          "optimizer": {"learning_rate": 2e-4, "warmup_steps": 3, "total_steps": 100}, "validation": {"interval": 0},
          "checkpoint": {"interval": 4, "keep": 20}, "logging": {"progress": "off", "tensorboard": False}}
json.dump(config, open(plain, "w"))
config["train"]["grad_clip"] = 0.2
config["sampler"] = {"mode": "buckets", "boundaries": [20, 30, 40, 60]}
config["ema"] = {"enabled": True}
config["validation"] = {"interval": 2}
config["early_stopping"] = {"enabled": True}
json.dump(config, open(improved, "w"))
PYTHON
# shellcheck disable=SC2317
train() { "$TRAIN_GPT_V2" --device cpu -q "$@"; }

check "a run without improvements" train --config "$work/plain.json" --output-dir "$run" --max-steps 8
cp -r "$run" "$never"
check "goes on with all of them" train --config "$work/improved.json" --output-dir "$run" --max-steps 14 --allow-change order
check "they did something" test -e "$run/best_model.pth"

status_of "$root/scripts/rollback.sh" "$run" --to 8
check "taken back: $(cat "$work/err")" test "$status" = 0
check "what came later is kept" test -e "$(echo "$run"/set_aside/*/model_step14.pth)"
check "the best of the improvements too" test -e "$(echo "$run"/set_aside/*/best_model.pth)"
status_of bash -c "$(cat "$work/out") --device cpu -q --max-steps 28"
check "the printed command goes on without --allow-change ($status): $(cat "$work/err")" test "$status" = 0
check "the run that never had them" train --config "$work/plain.json" --output-dir "$never" --max-steps 28

"$TRAIN_GPT_V2" inspect --json "$run/latest.pt" "$never/latest.pt" >"$work/difference.json"
check "the same tensors and the same losses" python3 - "$work/difference.json" "$run" "$never" <<'PYTHON'
import json, sys
compared, run, never = json.load(open(sys.argv[1])), sys.argv[2], sys.argv[3]
differing = [one["name"] for one in compared["differences"] if not one["name"].startswith(("recent_checkpoints.", "train_gpt_v2."))]
assert compared["equal"] > 200 and not differing, differing[:3]
losses = lambda folder: [(line["step"], line["loss"], line["grad_norm"]) for line in map(json.loads, open(folder + "/metrics.jsonl")) if line["type"] == "train"]
assert losses(run) == losses(never) and len(losses(run)) == 28, (losses(run)[-3:], losses(never)[-3:])
PYTHON
finish
