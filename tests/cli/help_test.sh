#!/usr/bin/env bash
# Help and manual page: every command says what it takes, with an example, in at most 60 lines; wrong use is status 64.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
program=${TGV2_BINARY:?ctest sets it}

help_of() { # NAME COMMAND...
  local name=$1; shift
  fails_with 0 "$name --help" "$program" "$@" --help
  check "$name --help has an example" says "Example: train_gpt_v2 $name"
  check "$name --help is at most 60 lines" test "$(wc -l <"$work/out")" -le 60
}
status_of "$program" --help
check "the program's help names three uses" test "$(grep -c '^ *train_gpt_v2 ' "$work/out")" -ge 3
commands=$(awk '/^ *Subcommands:|^SUBCOMMANDS:/ {on = 1; next} on && /^  [a-z]/ {print $1}' "$work/out")
check "the commands are listed" test "$(wc -w <<<"$commands")" -ge 10
for command in $commands; do
  if [ "$command" = config ]; then
    for below in show diff schema import completion man; do help_of "config $below" config "$below"; done
  else
    help_of "$command" "$command"
  fi
done

status_of "$program" train --help
for group in Configuration Common; do check "help is grouped: $group" grep -qi "^$group" "$work/out"; done
fails_with 64 "no command" "$program"
fails_with 64 "unknown command" "$program" chek --config x.json
check "the nearest command is named" says 'did you mean "check"?'
fails_with 64 "an unknown word" "$program" bogus
check "it is named" says 'there is no command "bogus"'
fails_with 64 "an unknown command of config" "$program" config shwo
check "its neighbour is named" says 'did you mean "show"?'
# NAME of what is empty, COMMAND...
empty_value() {
  fails_with 64 "$1 is empty: $2" "$program" "${@:2}"
  check "it is named" says "error[ARG001]: $1: the value is empty"
}
empty_value --config train --config ""
empty_value --config --config=
empty_value --resume train --config "$work/none.json" --resume "" --dry-run
empty_value --resume train --config "$work/none.json" --resume= --dry-run
empty_value --checkpoint eval --checkpoint ""
empty_value --order eval --checkpoint "$work/none.pth" --order ""
empty_value --output export --checkpoint "$work/none.pth" --output ""
empty_value --manifest pack --manifest "" --output "$work/set"
empty_value --text extend-vocab --base "$work/none.model" --text "" --size 9 --output "$work/x.model"
empty_value --out demo-data --out ""
empty_value A config diff "" "$work/none.json"
empty_value RUN_DIR report "" --output "$work/x.html"
fails_with 64 "a negative step" "$program" train --config "$work/none.json" --max-steps -1
check "the limit is readable" says 'error[ARG001]: --max-steps: -1 is negative'
fails_with 64 "a negative seed" "$program" demo-data --out "$work/demo" --seed -1
fails_with 64 "unknown option" "$program" check --config x.json --reapir y
fails_with 64 "missing value" "$program" check --config
fails_with 66 "missing config" "$program" check --config "$work/none.json"
check "the missing file is named" says "$work/none.json"
fails_with 66 "missing config, JSON" "$program" check --config "$work/none.json" --json
check "still one JSON document" python3 -c 'import json, sys; d = json.load(sys.stdin); assert d["stages"][0]["error"]["code"] == "IO001"' <"$work/out"

# What did not reach stdout is no success; a reader that leaves early is no failure.
if [ -w /dev/full ]; then
  for words in --version explain "config show" "train --help"; do
    status=0
    # shellcheck disable=SC2086
    "$program" $words >/dev/full 2>"$work/err" || status=$?
    check "$words on a full disk: status 74, was $status" test "$status" = 74
    check "the reason is given" says "cannot write the result to stdout"
  done
fi
for signals in default ignored; do
  [ "$signals" = default ] || trap '' PIPE
  "$program" config schema 2>"$work/err" | head -n 1 >/dev/null
  check "a closed pipe, SIGPIPE $signals, is silent" test ! -s "$work/err"
done
trap - PIPE

fails_with 0 "manual page" "$program" config man
cp "$work/out" "$work/page.1"
for word in '.SS train' '.SS config show' 'train.batch_size' 'CKP010' '.SH EXIT STATUS'; do check "the page has $word" says "$word"; done
check "every line is text or a request" bash -c "! grep -nE \"^['.]\" '$work/page.1' | grep -vE '^[0-9]+:\\.(TH|SH|SS|TP|PP|nf|fi|br)( |\$)'"
if command -v groff >/dev/null; then
  check "groff takes it without a word" test -z "$(groff -k -man -Tutf8 -ww "$work/page.1" 2>&1 >/dev/null)"
fi
finish
