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

# Never better by 100: it ends at step 12 instead of 14, which is what it is for.
status_of rollout --output "$work/early" --only early_stopping --set validation.interval=2 --set early_stopping.patience=1 \
  --set early_stopping.min_improvement=100
check "early stopping that stopped is kept: $(cat "$work/err")" test "$status" = 0
check "it had stopped, and was compared as far as it came" python3 - "$work/early/rollout.jsonl" <<'PYTHON'
import json, sys
(line,) = [json.loads(text) for text in open(sys.argv[1])]
assert (line["candidate"]["steps"], line["control"]["steps"]) == (4, 6), line
assert line["gates"]["bit_identical"]["verdict"] == "pass" and line["gates"]["text_loss"]["value"] == 0, line["gates"]
PYTHON

harmful train.grad_clip=1.0 optimizer.learning_rate=1
status_of env TRAIN_GPT_V2="$work/harmful" "${rollout[@]}" --output "$work/bad" --only clipping
check "a bad improvement ends with 10: $(cat "$work/err")" test "$status" = 10
check "its reason is the loss" grep -q '"verdict": "rolled_back".*more than 1.5 times the control' "$work/bad/rollout.jsonl"
check "everything is kept" test -d "$work/bad/runs/clipping-candidate"
check "what to revert is said" says "to revert clipping, set back: train.grad_clip (was 0)"
fails_with 73 "a directory with a rollout" rollout --output "$work/bad"
fails_with 64 "an unknown name" rollout --output "$work/x" --only speed

# A program that trains until it is told to end, or that is killed while it looks into a file.
cat >"$work/fake" <<'FAKE'
#!/usr/bin/env bash
case "$*" in
  *--max-steps*)
    for number in TERM INT HUP; do trap "echo $number >>'$FAKE/told'; exit 143" "$number"; done
    echo $$ >"$FAKE/child"
    while :; do sleep 0.1; done ;;
  inspect*) [ ! -e "$FAKE/kill" ] || kill -KILL $$ ;;
esac
exec "$REAL" "$@"
FAKE
chmod +x "$work/fake"
export FAKE=$work REAL=$TRAIN_GPT_V2
for pair in TERM:143 INT:130 HUP:129; do
  name=${pair%:*}
  rm -f "$work/child" "$work/told"
  # An asynchronous command has SIGINT ignored, and bash cannot take that back.
  env --default-signal=INT,HUP TRAIN_GPT_V2="$work/fake" "${rollout[@]}" --output "$work/$name" >"$work/out" 2>"$work/err" &
  pid=$!
  for _ in $(seq 300); do [ -s "$work/child" ] && break; sleep 0.1; done
  kill -s "$name" "$pid"
  status=0
  wait "$pid" || status=$?
  check "SIG$name ends with ${pair#*:}, was $status: $(cat "$work/err")" test "$status" = "${pair#*:}"
  check "the run was told once" test "$(cat "$work/told")" = "$name"
  check "it is gone" test ! -e "/proc/$(cat "$work/child")"
  kill -KILL "$(cat "$work/child")" 2>/dev/null || true
  check "it is written down" grep -q "\"clipping\", \"verdict\": \"failed\".*stopped by SIG$name" "$work/$name/rollout.jsonl"
done
touch "$work/kill"
fails_with 137 "a program that the system killed" env TRAIN_GPT_V2="$work/fake" "${rollout[@]}" --output "$work/killed"
check "it says so" grep -q 'inspect --json: killed by signal 9' "$work/killed/rollout.jsonl"

printf '%b\n' '' '[1]' '{"id": "\\xff", "target_text": "text"}' '{"id": "a", "target_text": "text"}' '' '{' >"$work/pairs.jsonl"
check "languages behind manifests are known" python3 -B - "$root/scripts" "$work" <<'PYTHON'
import sys
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
from rollout_gates import Rollout
for suffix in ("", "::am", "@pt-br", "=zh_CN"):
    data = {"val_manifests": [sys.argv[2] + "/pairs.jsonl" + suffix], "tokenizer": "some"}
    rollout = SimpleNamespace(config={"data": data}, options=SimpleNamespace(output=sys.argv[2]))
    assert Rollout.cases_of_validation(rollout), suffix
PYTHON
finish
