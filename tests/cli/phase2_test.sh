#!/usr/bin/env bash
# scripts/phase2.sh on the fixtures' tiny model: two speakers are the old language, two the new one.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
export TRAIN_GPT_V2=${TGV2_BINARY:?ctest sets it}
script=$root/scripts/phase2.sh

python3 - "$root/tests/data/fixtures" "$work" <<'PYTHON'
import json, sys
fixtures, work = sys.argv[1:]
model = json.load(open(fixtures + "/model/config.json"))["constructor"]
model.pop("use_accel")
for part in ("train", "val"):
    files = {name: open("%s/%s_%s.jsonl" % (work, name, part), "w") for name in ("old", "new")}
    for line in open("%s/data/%s_pairs.jsonl" % (fixtures, part)):
        pair = json.loads(line)
        for key in list(pair):
            if key.endswith("_path") and pair[key]:
                pair[key] = fixtures + "/data/" + pair[key]
        old = pair["id"].startswith(("spk000", "spk001"))
        files["old" if old else "new"].write(json.dumps(pair) + "\n")
json.dump({"model": model, "init": {"from": fixtures + "/model/gpt.pth"},
           "data": {"train_manifests": [work + "/new_train.jsonl::am"], "val_manifests": [work + "/new_val.jsonl"],
                    "tokenizer": fixtures + "/tokenizer/extended.model",
                    "replay": [{"manifest": work + "/old_train.jsonl::am", "share": 0.25}]},
           "train": {"batch_size": 4, "max_steps": 1000, "epochs": None, "num_threads": 1},
           "peft": {"method": "dora_adalora", "rank": 8, "rank_pattern": {"mlp.*": 4}, "pruning_steps": [300, 600]},
           "trainable": {"freeze": ["wpe", "ln_*"], "train": ["wte", "mel_head"]},
           "optimizer": {"learning_rate": 2e-3, "warmup_steps": 5,
                         "groups": [{"name": "heads", "match": ["mel_head"], "learning_rate": 1e-3, "weight_decay": 0}]},
           "ema": {"enabled": True, "decay": 0.99}, "logging": {"progress": "off", "tensorboard": False}},
          open(work + "/phase2.json", "w"))
PYTHON
# shellcheck disable=SC2317
cycle() { "$script" --config "$work/phase2.json" --output "$work/cycle" --smoke --device cpu --protect "$work/old_val.jsonl" \
  --fisher-samples 8 --scales 0.5 --max-overhead 5 "$@"; }

# Stopped in its first run, the same command goes on there.
easy=(--min-top1 0 --max-mel-loss 50 --max-forgetting 10)
cycle "${easy[@]}" >"$work/out" 2>"$work/err" &
pid=$!
for _ in $(seq 600); do grep -q '"event":"start"' "$work/cycle/runs/none/metrics.jsonl" 2>/dev/null && break; sleep 0.1; done
pkill -TERM -P "$pid" -f phase2_cycle.py || kill -TERM "$pid"
status=0
wait "$pid" || status=$?
check "stopped by SIGTERM ($status): $(tail -n 4 "$work/err")" test "$status" = 143
check "nothing is said to be finished" test ! -e "$work/cycle/phase2.json"

status_of cycle "${easy[@]}"
check "the Fisher information is not measured again" says "measured before"
check "every target is met: $(tail -n 4 "$work/err")" test "$status" = 0
check "the table ends with the verdict" grep -q '^pass: ' "$work/out"
check "what was measured is complete" python3 - "$work/cycle/phase2.json" "$work" <<'PYTHON'
import json, os, sys
result = json.load(open(sys.argv[1]))
work = sys.argv[2]
old = work + "/old_val.jsonl"
assert result["verdict"] == "pass" and result["data"] == "config" and result["method"] == "dora_adalora", result
assert list(result["runs"]) == ["none", "ewc", "replay", "none, merge scale 0.5"], list(result["runs"])
base = result["base"]["protected"][old]["mel_loss"]
for run in list(result["runs"].values()) + [result["merged"]]:
    growth = run["protected"][old]["mel_loss"] / base - 1
    assert abs(run["worst"] - growth) < 1e-9 and run["forgetting"] == {old: run["worst"]}, run
none, ewc, replay, half = result["runs"].values()
assert none["new"]["mel_loss"] < result["base"]["new"]["mel_loss"], "nothing was learned"
for guarded in (ewc, replay, half):
    assert guarded["protected"] != none["protected"], "a guard changed nothing"
assert set(result["targets"]) == {"mel_top1", "mel_loss", "forgetting", "merged_equals_adapter", "plain_keys", "overhead"}
kept = result["runs"][result["kept"]]
assert abs(result["merged"]["new"]["mel_loss"] - kept["new"]["mel_loss"]) < 1e-5
assert result["merged"]["proof"]["max_logit_difference"] < 1e-3
assert result["fisher"]["samples"] == min(8, sum(1 for _ in open(old)))
adapters = result["adapters"]
assert adapters["ranks"] == round(48 / 1.5), adapters  # pruned, though steps were 12 instead of 1000
assert adapters["of"] == 64 * (192 + 64 + 256 + 256), adapters
for file in ("report.html", "merged_final.pth", "fisher.safetensors"):
    assert os.path.getsize(work + "/cycle/" + file) > 0, file
PYTHON
# The same command again: finished runs are not trained again; another target can be missed.
before=$(sha256sum "$work"/cycle/runs/*/latest.pt)
status_of cycle --guards none --scales "" --min-top1 1
check "a missed target ends with 10: $(tail -n 3 "$work/err")" test "$status" = 10
check "it is named" grep -q '^mel_top1 *missed' "$work/out"
check "nothing was trained again" test "$before" = "$(sha256sum "$work"/cycle/runs/*/latest.pt)"

check "languages behind manifests are known" python3 -B - "$root/scripts" "$work" <<'PYTHON'
import os, sys
sys.path.insert(0, sys.argv[1])
from phase2_cycle import plain_path
for suffix in ("::am", "@am", "=am", "::pt-br", "@zh_CN", "=amh"):
    assert plain_path("x.jsonl" + suffix) == "x.jsonl", suffix
for whole in ("x.jsonl", "x.jsonl::", "x.jsonl::a", "x.jsonl::am1", "x.jsonl::muchtoolong", "::am"):
    assert plain_path(whole) == whole, whole
os.chdir(sys.argv[2])
open("there.jsonl@am", "w").close()
assert plain_path("there.jsonl@am") == "there.jsonl@am"
PYTHON

fails_with 64 "no option" "$script"
fails_with 64 "an unknown guard" cycle --guards none,magic
fails_with 64 "a share that is none" cycle --replay-share much
fails_with 66 "no configuration" "$script" --config "$work/none.json" --output "$work/x"
fails_with 66 "data that is not there" "$script" --config "$root/configs/phase2_dora.json" --output "$work/x" --data config
fails_with 0 "--help" "$script" --help
check "the scripts are clean" sh -c "! command -v shellcheck >/dev/null || shellcheck '$script'"
finish
