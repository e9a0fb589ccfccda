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

says() { grep -qF -- "$1" "$work/out" "$work/err"; }

finish() {
  [ "$done_checks" -gt 0 ] || { echo "no checks ran"; exit 1; }
  [ "$bad" = 0 ] || { echo "$bad of $done_checks checks failed"; exit 1; }
  echo "$done_checks checks passed"
  exit 0
}
