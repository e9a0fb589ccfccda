# shellcheck shell=bash disable=SC2034
# For tests/cli/*_test.sh: source this, use `check` and `fails_with`, end with `finish`.
# $root is the clone, $work a folder that disappears with the test.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0 done_checks=0

# check WHAT COMMAND...: the command must succeed.
check() {
  local what=$1; shift
  done_checks=$((done_checks + 1))
  "$@" || { echo "FAILED: $what ($*)"; bad=$((bad + 1)); }
}

# status_of COMMAND...: runs it with output into $work/out and $work/err, leaves the exit status in $status.
status_of() {
  status=0
  "$@" >"$work/out" 2>"$work/err" || status=$?
}

# fails_with STATUS WHAT COMMAND...
fails_with() {
  local wanted=$1 what=$2; shift 2
  status_of "$@"
  check "$what: status $wanted, was $status: $(tail -n 3 "$work/err")" test "$status" = "$wanted"
}

# write_config FILE JSON: a small run on the fixtures (one thread, no progress, no TensorBoard) with JSON merged over it.
write_config() {
  python3 - "$root/tests/data/fixtures" "$1" "${2:-{\}}" <<'PYTHON'
import json, sys
fixtures, out, changes = sys.argv[1:]
model = json.load(open(fixtures + "/model/config.json"))["constructor"]
model.pop("use_accel")
config = {"model": model, "init": {"from": fixtures + "/model/gpt.pth"},
          "data": {"train_manifests": [fixtures + "/data/train_pairs.jsonl::am"], "val_manifests": [fixtures + "/data/val_pairs.jsonl"],
                   "tokenizer": fixtures + "/tokenizer/extended.model"},
          "train": {"batch_size": 4, "num_threads": 1}, "optimizer": {"learning_rate": 2e-4},
          "logging": {"progress": "off", "tensorboard": False}}
for section, keys in json.loads(changes).items():
    config.setdefault(section, {}).update(keys)
json.dump(config, open(out, "w"))
PYTHON
}

# handles_signals PID: the program runs under that number and has set its handlers (bit of SIGUSR2 in the mask of caught
# signals); before that the kernel answers, or the shell that is about to become the program.
handles_signals() {
  local caught
  [ "$(readlink "/proc/$1/exe" 2>/dev/null)" = "$(readlink -f "$TGV2_BINARY")" ] || return 1
  caught=$(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/$1/status" 2>/dev/null) || return 1
  [ -n "$caught" ] && [ $((0x${caught: -8} >> 11 & 1)) = 1 ]
}

says() { grep -qF -- "$1" "$work/out" "$work/err"; }

finish() {
  [ "$done_checks" -gt 0 ] || { echo "no checks ran"; exit 1; }
  [ "$bad" = 0 ] || { echo "$bad of $done_checks checks failed"; exit 1; }
  echo "$done_checks checks passed"
  exit 0
}
