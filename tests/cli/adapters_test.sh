#!/usr/bin/env bash
# fisher, merge, export --format peft and inspect from outside: exit codes, signals, what is on stdout.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
program=${TGV2_BINARY:?ctest sets it}
fixtures=$root/tests/data/fixtures
model=(--checkpoint "$fixtures/model/gpt.pth" --config "$root/tests/data/export/fixture.json" --device cpu -q)
adapter=(--set "init.peft_adapter=$fixtures/peft/dora")
pairs=$fixtures/data/val_pairs.jsonl

status_of "$program" merge "${model[@]}" "${adapter[@]}" --manifest "$pairs" --output "$work/merged_final.pth"
check "merge: $(cat "$work/err")" test "$status" = 0
check "the differences are printed" grep -q 'max |dlogit| [0-9.e-]* (largest logit [0-9.]*), dloss [0-9.e-]*' "$work/out"
status_of "$program" merge "${model[@]}" "${adapter[@]}" --manifest "$pairs" --output "$work/half.pth" --scale 0.5 --json
check "--json is one document" python3 -c 'import json,sys; assert json.load(open(sys.argv[1]))["scale"] == 0.5' "$work/out"
fails_with 0 "the merged file needs no configuration" "$program" eval --checkpoint "$work/merged_final.pth" --manifest "$pairs" -q --device cpu
fails_with 0 "inspect A B" "$program" inspect "$work/merged_final.pth" "$work/half.pth"
check "eight matrices differ" says "8 differ"
fails_with 65 "above the tolerance" "$program" merge "${model[@]}" "${adapter[@]}" --manifest "$pairs" --output "$work/no.pth" --tolerance 0
check "nothing is written then" test ! -e "$work/no.pth"
fails_with 65 "nothing to merge" "$program" merge "${model[@]}" --manifest "$pairs" --output "$work/no.pth"
fails_with 78 "no manifest for the proof" "$program" merge "${model[@]}" "${adapter[@]}" --output "$work/no.pth"
fails_with 64 "a scale above one" "$program" merge "${model[@]}" "${adapter[@]}" --manifest "$pairs" --output "$work/no.pth" --scale 1.5
fails_with 66 "no checkpoint" "$program" merge --checkpoint "$work/none.pth" --output "$work/no.pth"

write_config "$work/check.json" '{"train": {"batch_size": 8}}'
"$program" check --config "$work/check.json" --device cpu --json >"$work/out" 2>"$work/err"
check "check suggests a batch size from what it measured" python3 -c '
import json, sys
measured = json.load(open(sys.argv[1]))["measured"]
assert 1 <= measured["suggested_batch_size"] <= 16, measured' "$work/out"

fails_with 78 "check without a manifest" "$program" check --config "$work/check.json" --device cpu --set "data.train_manifests=[]"
check "it says so" says "error[CFG014]: data.train_manifests is empty: there is nothing to look at"
check "and what to name" says 'fix: name at least one pair manifest, e.g. "train_manifests": ["train_pairs.jsonl::am"]'

fails_with 0 "export for peft" "$program" export "${model[@]}" "${adapter[@]}" --format peft --output "$work/folder"
check "peft's two files" test -s "$work/folder/adapter_config.json" -a -s "$work/folder/adapter_model.safetensors"
fails_with 0 "inspect shows ranks" "$program" inspect "$work/folder/adapter_model.safetensors"
check "kind and ranks" grep -q '^dora: .* parameters, 48 ranks in 8 matrices' "$work/out"
fails_with 64 "half precision adapters" "$program" export "${model[@]}" "${adapter[@]}" --format peft --output "$work/x" --dtype fp16

status_of "$program" fisher "${model[@]}" --manifest "$pairs" --samples 3 --output "$work/f.safetensors" --json
check "fisher: $(cat "$work/err")" test "$status" = 0
check "its document" python3 -c 'import json,sys; assert json.load(open(sys.argv[1]))["samples"] == 3' "$work/out"
fails_with 0 "two manifests behind one flag" "$program" fisher "${model[@]}" --manifest "$pairs" \
  "$fixtures/data/train_pairs.jsonl" --samples 2 --output "$work/two.safetensors"
fails_with 65 "a Fisher file is no model" "$program" eval --checkpoint "$work/f.safetensors" --config "$root/tests/data/export/fixture.json" --manifest "$pairs" --device cpu
check "it says what it is" says "this is a Fisher file"
cp "$fixtures/model/gpt.pth" "$work/own.pth"
fails_with 64 "merge over its own input" "$program" merge --checkpoint "$work/own.pth" --config "$root/tests/data/export/fixture.json" \
  "${adapter[@]}" --manifest "$pairs" --output "$work/own.pth"
check "it says so" says "--output names the checkpoint itself"
fails_with 64 "fisher without a manifest" "$program" fisher "${model[@]}" --output "$work/g.safetensors"
fails_with 73 "fisher into a file's folder" "$program" fisher "${model[@]}" --manifest "$pairs" --output "$work/f.safetensors/g"

# File names need not be UTF-8: the one document of --json holds what it can, and the work is not lost.
odd=$work/$'caf\xe9'
mkdir "$odd"
cp "$fixtures/model/gpt.pth" "$odd/gpt.pth"
cp "$work/check.json" "$odd/check.json"
odd_model=(--checkpoint "$odd/gpt.pth" "${model[@]:2}")
is_json() { python3 -c 'import json, sys; json.load(open(sys.argv[1], encoding="utf-8"))' "$work/out"; }
for words in "eval --manifest $pairs" "fisher --manifest $pairs --samples 1 --output $odd/f.safetensors"; do
  # shellcheck disable=SC2086
  fails_with 0 "${words%% *} of a file with such a name" "$program" $words "${odd_model[@]}" --json
  check "${words%% *} --json is a document" is_json
done
fails_with 0 "extend-vocab of such a base" "$program" extend-vocab --base "$fixtures/tokenizer/base.model" \
  --text "$fixtures/data/train_pairs.jsonl::am" --text "$pairs" --size 900 --output "$odd/extended.model" --json
check "extend-vocab --json is a document" is_json
for form in "" --json; do
  status_of "$program" check --config "$odd/check.json" --device cpu --data-only --repair "$odd/repaired$form" $form
  check "check --repair $form does not break: $status" test "$status" != 70
  check "its manifests are there" test -s "$odd/repaired$form/left_out.jsonl" -o -s "$odd/repaired$form/train0_train_pairs.jsonl"
  [ -z "$form" ] || check "check --json is a document" is_json
done

many=()
for _ in $(seq 400); do many+=(--manifest "$fixtures/data/train_pairs.jsonl"); done
"$program" fisher "${model[@]}" "${many[@]}" --batch-size 1 --output "$work/h.safetensors" >"$work/out" 2>"$work/err" &
pid=$!
sleep 2
kill -TERM "$pid"
status=0
wait "$pid" || status=$?
check "SIGTERM ends fisher with 143, was $status" test "$status" = 143
check "no file is left" test ! -e "$work/h.safetensors"
finish
