#!/usr/bin/env bash
# scripts/rollout.sh on the fixtures' tiny model: all six kept; a bad improvement, a hang and lost memory rolled back.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
export TRAIN_GPT_V2=${TGV2_BINARY:?ctest sets it}
program=$TRAIN_GPT_V2
# shellcheck source=tests/support/rollout_base.sh
source "$root/tests/support/rollout_base.sh"
make_base
before=$(sha256sum <"$checkpoint")

status_of rollout --output "$work/all" --integration-steps 10
cp "$work/out" "$work/table"
check "all are kept: $(cat "$work/table")" test "$status" = 0
check "the table ends with the integration" grep -q '^integration  *kept' "$work/table"
check "the prompts were spoken before and after" test -s "$work/all/prompts/after/samples.jsonl"
check "a page was made" test -s "$work/all/report.html"
check "the checkpoint was only read" test "$before" = "$(sha256sum <"$checkpoint")"
check "the objects are complete" python3 - "$work/all/rollout.jsonl" <<'PYTHON'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
names = ["clipping", "best", "validation", "ema", "bucketing", "early_stopping", "integration"]
assert [line["name"] for line in lines] == names
gates = {line["name"]: line["gates"] for line in lines}
for line in lines:
    assert line["verdict"] == "kept" and line["seconds"] > 0, line
    assert line["candidate"]["loss"] > 0 and line["control"]["loss"] > 0, line
    assert line["candidate"]["settings"] != line["control"]["settings"], line
    for gate in ("finite", "loss", "text_loss", "mel_top1", "speed", "peak_memory_bytes", "keys", "save_load", "checkpoint_bytes"):
        assert line["gates"][gate]["verdict"] in ("pass", "warn"), (line["name"], gate)
for name in ("best", "validation", "ema", "early_stopping"):
    assert gates[name]["bit_identical"]["value"] is None
    assert lines[names.index(name)]["candidate"]["loss"] == lines[names.index(name)]["control"]["loss"]
assert gates["clipping"]["identical_until_clipped"]["value"]["first_clipped"]
assert lines[0]["candidate"]["loss"] != lines[0]["control"]["loss"], "clipping changed nothing"
assert lines[4]["candidate"]["loss"] != lines[4]["control"]["loss"], "bucketing changed nothing"
assert gates["ema"]["ema_bytes"]["value"] > 0
assert gates["bucketing"]["fixed_validation_mel_loss"]["value"]["candidate"] > 0
assert gates["bucketing"]["speakers_per_batch"]["value"]["random"] > 0
assert gates["integration"]["full_run"]["value"]["steps"] == 5
prompts = gates["integration"]["prompts"]["value"]
assert [one["id"] for one in prompts["before"]] == [one["id"] for one in prompts["after"]] and len(prompts["after"]) == 5
PYTHON

# A learning rate of 1 stands for an improvement that ruins the training.
harmful train.grad_clip=1.0 optimizer.learning_rate=1
status_of env TRAIN_GPT_V2="$work/harmful" "${rollout[@]}" --output "$work/bad" --only clipping
check "a bad improvement ends with 10: $(cat "$work/err")" test "$status" = 10
check "its reason is the loss" grep -q '"verdict": "rolled_back".*more than 1.5 times the control' "$work/bad/rollout.jsonl"
check "what to revert is said" says "to revert clipping, set back: train.grad_clip (was 0)"
# A small change that only the comparison bit by bit sees.
harmful ema.enabled=true optimizer.learning_rate=2.1e-5
status_of env TRAIN_GPT_V2="$work/harmful" "${rollout[@]}" --output "$work/small" --only ema
check "other losses under EMA end with 10: $(cat "$work/err")" test "$status" = 10
check "its reason is the comparison" grep -q '"reason": "bit_identical: ' "$work/small/rollout.jsonl"
status_of rollout --output "$work/top1" --only best --min-top1 1.1
check "a top-1 below the limit ends with 10" test "$status" = 10

# The program around the program: out of memory, and an end that never comes.
cat >"$work/fake" <<'FAKE'
#!/usr/bin/env bash
case "$*" in *ema.enabled=true*) [ "$FAKE" = memory ] && exit 82; exec sleep 300 ;; esac
exec "$REAL" "$@"
FAKE
chmod +x "$work/fake"
export REAL=$program TRAIN_GPT_V2=$work/fake
FAKE=memory status_of rollout --output "$work/memory" --only ema
check "lost memory ends with 10" test "$status" = 10
check "its reason is the memory" grep -q '"reason": "out of memory' "$work/memory/rollout.jsonl"
FAKE=hang status_of rollout --output "$work/hang" --only ema --timeout 15
check "a hang ends with 10" test "$status" = 10
check "its reason is the hang" grep -q '"reason": "no end within 15 s: hang' "$work/hang/rollout.jsonl"
export TRAIN_GPT_V2=$program

# What cannot be judged.
head -c 4000 "$checkpoint" >"$work/damaged.pt"
fails_with 65 "a damaged checkpoint" rollout --output "$work/damaged" --resume "$work/damaged.pt"
check "it is written down" grep -q '"verdict": "failed"' "$work/damaged/rollout.jsonl"
fails_with 73 "a directory with a rollout" rollout --output "$work/all"
fails_with 64 "an unknown name" rollout --output "$work/x" --only speed
fails_with 64 "no steps" rollout --output "$work/x" --steps 0
fails_with 64 "no option" "$root/scripts/rollout.sh"
fails_with 66 "no checkpoint" rollout --resume "$work/none.pt" --output "$work/x"
fails_with 0 "--help" rollout --help
finish
