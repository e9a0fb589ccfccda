#!/usr/bin/env bash
# scripts/run_until_done.sh against a fake trainer that ends as a list of words says, and once with the program itself.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
script=$root/scripts/run_until_done.sh

# The n-th start obeys the n-th word of $work/plan: a status, "save:STATUS" (a newer checkpoint first), "kill:SIGNAL",
# "done" (writes DONE, status 0), "hang" (until a signal comes: then saves and ends with 143 or 130).
cat >"$work/trainer" <<'TRAINER'
#!/usr/bin/env bash
here=$(dirname "$0")
run=$here/run
mkdir -p "$run"
starts=$(($(cat "$here/starts" 2>/dev/null || echo 0) + 1))
echo "$starts" >"$here/starts"
word=$(sed -n "${starts}p" "$here/plan")
save() { touch "$run/model_step$((starts * 10)).pth"; }
case "$word" in
  done) touch "$run/DONE"; exit 0 ;;
  save:*) save; exit "${word#save:}" ;;
  kill:*) kill -s "${word#kill:}" $$; sleep 5 ;;
  hang)
    trap 'save; exit 143' TERM
    trap 'save; exit 130' INT
    touch "$here/hanging"
    while :; do sleep 0.1; done ;;
  *) exit "$word" ;;
esac
TRAINER
chmod +x "$work/trainer"

plan() { rm -rf "$work/run" "$work/starts" "$work/hanging"; printf '%s\n' "$@" >"$work/plan"; }
starts() { cat "$work/starts"; }
runs() { status_of "$script" --first-wait 0 "$@" -- "$work/trainer" --output-dir "$work/run"; }

plan 75 83 129 143 kill:KILL kill:SEGV kill:ABRT "done"
runs --tries 10
check "ends well at DONE ($status)" test "$status" = 0
check "started eight times ($(starts))" test "$(starts)" = 8
check "says that it is done" says "done: $work/run/DONE"

for fatal in 64 65 66 70 73 74 78 80 82 130 1; do
  plan "$fatal" "done"
  runs
  check "status $fatal is passed on ($status)" test "$status" = "$fatal"
  check "status $fatal is not retried" test "$(starts)" = 1
done

plan 0 "done"
runs
check "a good end without DONE ends it too" test "$status" = 0
check "and is said" says "without a DONE mark"
check "it is not started again" test "$(starts)" = 1

plan 75 75 75 75 75 "done"
runs --tries 3
check "gives up with the last status ($status)" test "$status" = 75
check "after three tries ($(starts))" test "$(starts)" = 3

plan 75 75 save:75 75 75 save:143 75 75 "done"
runs --tries 3
check "progress sets the count back ($status)" test "$status" = 0
check "nine starts ($(starts))" test "$(starts)" = 9

plan 75 75 75 "done"
begin=$(date +%s%N)
status_of "$script" --first-wait 1 --longest-wait 1 -- "$work/trainer" --output-dir "$work/run"
took=$((($(date +%s%N) - begin) / 1000000))
check "the waits are kept and bounded (3 s, was $took ms)" test "$took" -ge 3000
check "done ($status)" test "$status" = 0
check "waits double" bash -c "! grep -q 'in 2 s' '$work/err'"
plan 75 75 save:75 "done"
status_of timeout 30 "$script" --first-wait 1 -- "$work/trainer" --output-dir "$work/run"
check "1 s, 2 s, and 1 s again after progress: $(grep -o 'in [0-9]* s' "$work/err" | tr '\n' ' ')" \
  test "$(grep -o 'in [0-9]* s' "$work/err" | tr '\n' ' ')" = "in 1 s in 2 s in 1 s "

# Signals to the script reach the trainer, which saves; then it is not started again.
for pair in TERM:143 INT:130; do
  plan hang "done"
  # An asynchronous command has SIGINT ignored, and bash cannot take that back.
  env --default-signal=INT "$script" --first-wait 0 -- "$work/trainer" --output-dir "$work/run" >"$work/out" 2>"$work/err" &
  pid=$!
  for _ in $(seq 100); do [ -e "$work/hanging" ] && break; sleep 0.1; done
  kill -s "${pair%:*}" "$pid"
  status=0
  wait "$pid" || status=$?
  check "SIG${pair%:*} gives ${pair#*:} ($status)" test "$status" = "${pair#*:}"
  check "the trainer saved" test -e "$work/run/model_step10.pth"
  check "no second start" test "$(starts)" = 1
done

# A signal during the wait ends it at once.
plan 75 "done"
"$script" --first-wait 60 -- "$work/trainer" --output-dir "$work/run" >"$work/out" 2>"$work/err" &
pid=$!
for _ in $(seq 100); do grep -q "starting again" "$work/err" && break; sleep 0.1; done
sleep 0.2
kill -s TERM "$pid"
status=0
wait "$pid" || status=$?
check "SIGTERM while waiting ($status)" test "$status" = 143
check "not started again" test "$(starts)" = 1

# The run directory follows from the config's name, relative to the working directory.
plan "done"
mkdir -p "$work/cwd/runs/amharic"
touch "$work/cwd/runs/amharic/DONE"
(cd "$work/cwd" && "$script" -- "$work/trainer" --config ../amharic.json) >"$work/out" 2>"$work/err"
check "runs/NAME of --config NAME.json" says "done: runs/amharic/DONE"
# named CONFIG NAME: without --output-dir the run directory is runs/NAME.
named() {
  plan "done"
  mkdir -p "$work/cwd/runs/$2"
  touch "$work/cwd/runs/$2/DONE"
  (cd "$work/cwd" && "$script" -- "$work/trainer" "--config=$1") >"$work/out" 2>"$work/err"
  check "runs/$2 of $1: $(cat "$work/err")" says "done: runs/$2/DONE"
}
named ../am.v2.json am.v2
named am.v2 am.v2
named x/am.jsonc am.jsonc
named x/.json config

# A run that began from a checkpoint of another one, killed: the same command goes on where it was, not where it began.
# Its name is the program's own: no ending but .json is left out.
program=${TGV2_BINARY:?ctest sets it}
write_config "$work/cwd/run.v2" '{"train": {"max_steps": 60, "epochs": null, "log_interval": 1}, "validation": {"interval": 0}, "checkpoint": {"interval": 4}}'
status_of "$program" --config "$work/cwd/run.v2" --output-dir "$work/first" --device cpu -q --max-steps 4
check "a checkpoint to begin from: $(cat "$work/err")" test -e "$work/first/model_step4.pth"
cat >"$work/mortal" <<'MORTAL'
#!/usr/bin/env bash
# The program; at its first start it is killed once it has saved step 12.
"$TGV2_BINARY" "$@" &
pid=$!
if [ ! -e killed ]; then
  until [ -e runs/run.v2/model_step12.pth ]; do kill -0 "$pid" || break; sleep 0.01; done
  kill -KILL "$pid" && touch killed
fi
wait "$pid"
MORTAL
chmod +x "$work/mortal"
(cd "$work/cwd" && "$script" --first-wait 0 --tries 2 -- "$work/mortal" --config run.v2 --resume "$work/first/model_step4.pth" \
  --device cpu -q) >"$work/out" 2>"$work/err"
check "it was killed" test -e "$work/cwd/killed"
check "and came to its end: $(cat "$work/err")" says "done: runs/run.v2/DONE"
check "it was not sent back, and every step has one line" python3 - "$work/cwd/runs/run.v2/metrics.jsonl" <<'PYTHON'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
begun = [line["step"] for line in lines if line["type"] == "event" and line["event"] in ("start", "resume")]
assert len(begun) == 2 and begun[0] == 4 and begun[1] >= 12, begun
steps = [line["step"] for line in lines if line["type"] == "train"]
assert steps == list(range(5, 61)), (begun, steps)
PYTHON

plan "done"
status_of env TRAIN_GPT_V2="$work/trainer" "$script" -- train_gpt_v2 --output-dir="$work/run"
check "train_gpt_v2 stands for the program" says "done: $work/run/DONE"

fails_with 64 "no command" "$script"
fails_with 64 "no command behind --" "$script" --
fails_with 64 "unknown option" "$script" --often -- true
fails_with 64 "no number" "$script" --tries x -- true
fails_with 64 "no tries" "$script" --tries 0 -- true
fails_with 64 "no value" "$script" --run-dir
fails_with 64 "no run directory" "$script" -- "$work/trainer"
fails_with 64 "program not there" env TRAIN_GPT_V2=/nowhere PATH=/usr/bin:/bin "$script" -- train_gpt_v2 --config x.json
fails_with 0 "--help" "$script" --help
check "the help speaks of the statuses" says "75 (temporary)"
finish
