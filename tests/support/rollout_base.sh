# shellcheck shell=bash
# For tests/cli/rollout_*_test.sh, after support/cli.sh: the fixtures' tiny model trained for 8 steps, the call of
# rollout.sh on it, and a program in which an improvement does harm.
# Steps of milliseconds beside other tests: speed says nothing here. A model of 8 batches has no top-1 to ask for.
checkpoint=${work:?}/base/latest.pt
rollout=("$root/scripts/rollout.sh" --config "$work/run.json" --resume "$checkpoint" --device cpu --min-speed 0.02
  --min-top1 0 --steps 6 --max-codes 20)
rollout() { "${rollout[@]}" "$@"; }

make_base() {
  python3 - "$root/tests/data/fixtures" "$work/run.json" <<'PYTHON'
import json, sys
fixtures, out = sys.argv[1:]
model = json.load(open(fixtures + "/model/config.json"))["constructor"]
model.pop("use_accel")
model["dropout"] = 0.1
json.dump({"model": model, "init": {"from": fixtures + "/model/gpt.pth"},
           "data": {"train_manifests": [fixtures + "/data/train_pairs.jsonl::am"], "val_manifests": [fixtures + "/data/val_pairs.jsonl"],
                    "tokenizer": fixtures + "/tokenizer/extended.model"},
           "train": {"batch_size": 4, "grad_accumulation": 1, "max_steps": 200, "num_threads": 1},
           "optimizer": {"learning_rate": 2e-5, "warmup_steps": 5}, "logging": {"progress": "off", "tensorboard": False}},
          open(out, "w"))
PYTHON
  "$TRAIN_GPT_V2" --config "$work/run.json" --output-dir "$work/base" --device cpu -q --max-steps 8 ||
    { echo "no checkpoint"; exit 1; }
}

# harmful SETTING CHANGE: from now on the program with SETTING also gets CHANGE, as a badly made improvement would.
harmful() {
  cat >"$work/harmful" <<PROGRAM
#!/usr/bin/env bash
case "\$*" in *"$1"*--max-steps*|*--max-steps*"$1"*) set -- "\$@" --set "$2" --allow-change schedule ;; esac
exec "$TRAIN_GPT_V2" "\$@"
PROGRAM
  chmod +x "$work/harmful"
}
