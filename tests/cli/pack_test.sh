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

fails_with 0 "two manifests behind one flag" "$program" pack --manifest "$fixtures/data/val_pairs.jsonl" \
  "$fixtures/data/train_pairs.jsonl::am" --output "$work/both" --json
check "both are packed" python3 -c 'import json, sys; assert json.load(open(sys.argv[1]))["manifests"] == 2' "$work/out"
limited=(bash -c 'ulimit -f 8; exec "$@"' _ "$program")
fails_with 74 "beyond the limit on file sizes" "${limited[@]}" pack --manifest "$fixtures/data/train_pairs.jsonl" --output "$work/big"
check "the set's file is named, not the data" says "  --> $work/big/arrays_0.bin"
check "no fault of the data" bash -c "! grep -q 'train_pairs\|repair' '$work/err'"
check "no temporary file is left" test -z "$(find "$work/big" -name '*.tmp.*')"
fails_with 74 "export, too" "${limited[@]}" export --checkpoint "$fixtures/model/gpt.pth" \
  --config "$root/tests/data/export/fixture.json" --output "$work/export/gpt.pth" -q
check "nothing is left of it" test -z "$(ls "$work/export")"

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
cp -rs "$fixtures/data" "$work/data"
mv "$work/data/val_pairs.jsonl" "$work/data/"$'esc\e[2J.jsonl'
fails_with 0 "a manifest with a control sequence in its name" "$program" pack --manifest "$work/data/"$'esc\e[2J.jsonl' --output "$work/odd"
fails_with 0 "inspect of its set" "$program" inspect "$work/odd"
check "the terminal is not told to do anything" says 'esc?[2J.jsonl: 8 pairs'
printf 'x' | dd of="$work/train/arrays_0.bin" bs=1 seek=5000 conv=notrunc status=none
fails_with 65 "inspect --verify finds a flipped byte" "$program" inspect "$work/train" --verify
check "and says so" says DAT030
finish
