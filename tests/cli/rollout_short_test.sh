#!/usr/bin/env bash
# scripts/rollout.sh, the short form of rollout_test.sh: one improvement kept, a deliberately bad one caught, wrong calls.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
export TRAIN_GPT_V2=${TGV2_BINARY:?ctest sets it}
# shellcheck source=tests/support/rollout_base.sh
source "$root/tests/support/rollout_base.sh"
make_base

status_of rollout --output "$work/ema" --only ema
check "EMA is kept: $(cat "$work/err")" test "$status" = 0
check "with its gates" python3 - "$work/ema/rollout.jsonl" <<'PYTHON'
import json, sys
(line,) = [json.loads(text) for text in open(sys.argv[1])]
assert (line["name"], line["verdict"]) == ("ema", "kept"), line
assert line["gates"]["bit_identical"] == {"verdict": "pass", "value": None, "limit": "no step whose loss differs"}
for gate in ("finite", "loss", "speed", "peak_memory_bytes", "keys", "ema_bytes", "checkpoint_bytes", "save_load"):
    assert line["gates"][gate]["verdict"] in ("pass", "warn"), line["gates"][gate]
PYTHON

harmful train.grad_clip=1.0 optimizer.learning_rate=1
status_of env TRAIN_GPT_V2="$work/harmful" "${rollout[@]}" --output "$work/bad" --only clipping
check "a bad improvement ends with 10: $(cat "$work/err")" test "$status" = 10
check "its reason is the loss" grep -q '"verdict": "rolled_back".*more than 1.5 times the control' "$work/bad/rollout.jsonl"
check "everything is kept" test -d "$work/bad/runs/clipping-candidate"
check "what to revert is said" says "to revert clipping, set back: train.grad_clip (was 0)"
fails_with 73 "a directory with a rollout" rollout --output "$work/bad"
fails_with 64 "an unknown name" rollout --output "$work/x" --only speed
finish
