#!/usr/bin/env bash
# `pack` from outside: a run goes on from manifests to the packed set and back, and ends with the same bytes.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
program=${TGV2_BINARY:?ctest sets it}
fixtures=$root/tests/data/fixtures

check "pack" "$program" pack --manifest "$fixtures/data/train_pairs.jsonl::am" --output "$work/train" >/dev/null
status_of "$program" pack --manifest "$fixtures/data/val_pairs.jsonl" --output "$work/val" --dtype fp16 --json
check "pack --json" python3 -c '
import json, sys
report = json.load(open(sys.argv[1]))
assert report["pairs"] == 8 and report["rounded_to"] == "float16", report' "$work/out"
fails_with 73 "a set is never overwritten" "$program" pack --manifest "$fixtures/data/val_pairs.jsonl" --output "$work/val"
fails_with 66 "a missing manifest" "$program" pack --manifest "$work/none.jsonl" --output "$work/none"
fails_with 64 "an unknown type" "$program" pack --manifest "$fixtures/data/val_pairs.jsonl" --output "$work/x" --dtype int8

write_config() { # NAME TRAIN VAL
  python3 - "$fixtures" "$work/$1.json" "$2" "$3" <<'PYTHON'
import json, sys
fixtures, out, train, val = sys.argv[1:]
model = json.load(open(fixtures + "/model/config.json"))["constructor"]
model.pop("use_accel")
json.dump({"model": model, "data": {"train_manifests": [train], "val_manifests": [val], "num_workers": 1},
           "train": {"batch_size": 4, "max_steps": 9, "epochs": None, "num_threads": 1}, "optimizer": {"total_steps": 9},
           "validation": {"interval": 3}, "checkpoint": {"interval": 3}, "logging": {"progress": "off", "tensorboard": False}}, open(out, "w"))
PYTHON
}
write_config manifests "$fixtures/data/train_pairs.jsonl::am" "$fixtures/data/val_pairs.jsonl"
write_config packed "$work/train" "$work/val"
train() { # CONFIG RUN [OPTIONS]
  check "train $*" "$program" --config "$work/$1.json" --output-dir "$work/run_$2" --device cpu -q "${@:3}"
}
train manifests a
train manifests b --max-steps 3
train packed b --max-steps 6  # no --allow-change
train manifests b
status_of "$program" inspect "$work/run_a/latest.pt" "$work/run_b/latest.pt" --json
check "the same weights and optimizer state" python3 -c '
import json, sys
report = json.load(open(sys.argv[1]))
wrong = [d["name"] for d in report["differences"] if d["name"].split(".")[0] in ("model", "optimizer", "scheduler")]
assert report["equal"] > 100 and not wrong, wrong' "$work/out"

status_of "$program" inspect "$work/train" --verify --json
check "inspect names the pairs" python3 -c '
import json, sys
report = json.load(open(sys.argv[1]))
assert report["pairs"] == 24 and report["verified"] and report["manifests"][0]["language"] == "am", report' "$work/out"
printf 'x' | dd of="$work/train/arrays_0.bin" bs=1 seek=5000 conv=notrunc status=none
fails_with 65 "inspect --verify finds a flipped byte" "$program" inspect "$work/train" --verify
check "and says so" says DAT030
finish
