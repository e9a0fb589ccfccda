#!/usr/bin/env bash
# scripts/rollback.sh on run directories made by hand, with a fake program that verifies: a checkpoint is good when its
# text says so.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
script=$root/scripts/rollback.sh
run=$work/run

cat >"$work/program" <<'PROGRAM'
#!/usr/bin/env bash
case "$1 $2" in
  "inspect --verify") grep -q '^good' "$3" ;;
  "inspect --json") sed -n 's/^good step \([0-9]*\)$/{"keys":1,"step": \1, "tensors":[]}/p' "$3" ;;
  "config show") echo "config of $(cat "$4")" ;;
  *) exit 64 ;;
esac
PROGRAM
chmod +x "$work/program"
export TRAIN_GPT_V2=$work/program

make_run() {
  rm -rf "$run"
  mkdir -p "$run/samples/step_100" "$run/samples/step_300"
  for step in 100 200 300; do
    echo "good step $step" >"$run/model_step$step.pth"
    printf '{"v":1,"type":"train","step":%s,"epoch":0,"loss":%s,"lr":[1e-5]}\n' "$step" "3.$step" >>"$run/metrics.jsonl"
    printf '{"v":1,"type":"event","step":%s,"event":"save"}\n' "$step" >>"$run/metrics.jsonl"
  done
  printf '{"v":1,"type":"train","step":310,"loss":3.0}\n{"v":1,"type":"tra' >>"$run/metrics.jsonl"
  ln "$run/model_step300.pth" "$run/latest.pt"
  ln "$run/model_step300.pth" "$run/latest.pth"
  echo "good step 200" >"$run/best_model.pth"
  echo "good step 300" >"$run/best_mel_top1.pth"
  echo "{}" >"$run/DONE"
  echo '{}' >"$run/config.effective.json"
  echo notes >"$run/samples/step_300/notes.json"
}
aside() { echo "$run"/set_aside/*/; }
content() { find "$run" -type f ! -name '*.lock' -exec cat {} + | sort | sha256sum; }

make_run
status_of "$script" "$run" --to 200
check "rolled back: $(cat "$work/err")" test "$status" = 0
check "latest.pt is step 200" test "$run/latest.pt" -ef "$run/model_step200.pth"
check "latest.pth is step 200" test "$run/latest.pth" -ef "$run/model_step200.pth"
check "by a link, not a copy" test "$(stat -c %h "$run/model_step200.pth")" = 3
check "earlier files stay" test -f "$run/model_step100.pth"
check "the later checkpoint moved" test "$(cat "$(aside)model_step300.pth")" = "good step 300"
check "it left the folder" test ! -e "$run/model_step300.pth"
check "the best of step 200 stays" test -f "$run/best_model.pth"
check "the best of step 300 moved" test -f "$(aside)best_mel_top1.pth"
check "DONE moved" test -f "$(aside)DONE"
check "later samples moved" test -f "$(aside)samples/step_300/notes.json"
check "earlier samples stay" test -d "$run/samples/step_100"
check "the uncut metrics are kept" grep -q '"step":310' "$(aside)metrics.jsonl"
check "metrics are cut" test "$(grep -c '"step":3' "$run/metrics.jsonl")" = 0
check "metrics hold what came before" test "$(wc -l <"$run/metrics.jsonl")" = 5
check "and end with the event" bash -c "tail -n 1 '$run/metrics.jsonl' | python3 -c '
import json, sys
line = json.loads(sys.stdin.read())
assert (line[\"v\"], line[\"type\"], line[\"step\"], line[\"event\"]) == (1, \"event\", 200, \"rollback\"), line'"
check "the command to go on is printed" says "$work/program --config $run/config.effective.json --output-dir $run"
check "the configuration is that of the checkpoint" test "$(cat "$run/config.effective.json")" = "config of good step 200"
check "the later one is kept" test "$(cat "$(aside)config.effective.json")" = "{}"
check "no lock is left" test ! -e "$run/.lock"
check "nothing temporary is left" test -z "$(find "$run" -name '*rollback.*')"

# Again, to the step where it already is: nothing more moves.
before=$(find "$run" -name '*.pth' | sort | sha256sum)
status_of "$script" "$run" --to 200
check "a second time is harmless" test "$status" = 0
check "no checkpoint moved" test "$before" = "$(find "$run" -name '*.pth' | sort | sha256sum)"

# Without --to: the newest that verifies and before which the loss is a number.
make_run
echo "broken" >"$run/model_step300.pth"
status_of "$script" "$run"
check "the damaged newest is passed over" test "$run/latest.pt" -ef "$run/model_step200.pth"
check "and kept aside" test "$(cat "$(aside)model_step300.pth")" = broken
make_run
sed -i 's/"step":300,"epoch":0,"loss":3.300/"step":300,"epoch":0,"loss":null/' "$run/metrics.jsonl"
status_of "$script" "$run"
check "the checkpoint behind a loss that is no number is passed over" test "$run/latest.pt" -ef "$run/model_step200.pth"
make_run
status_of "$script" "$run"
check "a good newest stays" test "$run/latest.pt" -ef "$run/model_step300.pth"
check "what the log holds beyond it is cut" test "$(grep -c '"step":310' "$run/metrics.jsonl")" = 0

# latest.* as symbolic links, and as files of their own.
make_run
rm "$run/latest.pt" "$run/latest.pth"
ln -s model_step300.pth "$run/latest.pt"
echo "only here" >"$run/latest.pth"
status_of "$script" "$run" --to 100
check "symbolic links are replaced" test "$run/latest.pt" -ef "$run/model_step100.pth"
check "a latest file of its own is kept" test "$(cat "$(aside)latest.pth")" = "only here"

# Refusals change nothing.
make_run
before=$(content)
fails_with 66 "no such step" "$script" "$run" --to 250
echo "broken" >"$run/model_step200.pth"
before_broken=$(content)
fails_with 65 "damaged target" "$script" "$run" --to 200
check "the message names it" says "model_step200.pth is damaged"
check "nothing changed" test "$before_broken" = "$(content)"
check "no folder was made" test ! -e "$run/set_aside"
exec 8>>"$run/.lock"
flock 8
fails_with 75 "in use" "$script" "$run" --to 100
check "the lock of the other stays" test -e "$run/.lock"
exec 8>&-
make_run
for step in 100 200 300; do echo bad >"$run/model_step$step.pth"; done
fails_with 65 "none verifies" "$script" "$run"
check "nothing moved" test -f "$run/model_step300.pth"
mkdir "$work/empty"
fails_with 66 "no checkpoint" "$script" "$work/empty"
fails_with 66 "no directory" "$script" "$work/missing"
fails_with 64 "no argument" "$script"
fails_with 64 "two directories" "$script" "$run" "$work/empty"
fails_with 64 "bad step" "$script" "$run" --to x
fails_with 64 "unknown option" "$script" --now "$run"
fails_with 0 "--help" "$script" --help

# Names with spaces.
make_run
mv "$run" "$work/my run"
status_of "$script" "$work/my run" --to 100
check "a name with a space: $(cat "$work/err")" test "$status" = 0
check "the printed command is quoted" says 'my\ run'
test "$before" != "" || check "content was read" false
finish
