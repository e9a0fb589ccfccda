#!/usr/bin/env bash
# Starts a training command again after failures that a rerun can cure, until the run is done.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: scripts/run_until_done.sh [options] -- train_gpt_v2 --config FILE ...

Runs the command; when it ends with a status that a rerun can cure, waits and runs it again. Training continues from
the last checkpoint by itself (--resume auto is its default).

  restarted    75 (temporary), 83 (hang), 129 and 143 (SIGHUP, SIGTERM: checkpoint saved), death by any other signal
  not          0 (done, or --max-steps reached), 130 (Ctrl-C, a stop file), everything else: it needs a person

  --tries N         give up after N failures in a row without a newer checkpoint (default 6)
  --first-wait S    seconds before the first restart, doubled with every failure in a row (default 10)
  --longest-wait S  the longest of these waits (default 900)
  --run-dir DIR     the run directory, where it follows neither from --output-dir nor from --config
  -h, --help        this text

SIGINT, SIGTERM and SIGHUP go on to the command; when it has ended it is not started again.
The command's first word train_gpt_v2 means the program of $TRAIN_GPT_V2, or of build/release/bin.
Exit status: 0 when the run is done, otherwise the last status of the command; 64 wrong use.
USAGE
}

say() { printf 'run_until_done: %s\n' "$*" >&2; }
wrong_use() { say "$1 (--help shows the options)"; exit 64; }
number() { case "$2" in ''|*[!0-9]*|??????????*) wrong_use "$1 takes a whole number, not '$2'" ;; esac; }

tries=6 first_wait=10 longest_wait=900 run_dir=""
while [ $# -gt 0 ]; do
  case "$1" in
    --tries|--first-wait|--longest-wait|--run-dir)
      [ $# -gt 1 ] || wrong_use "$1 needs a value"
      case "$1" in
        --run-dir) run_dir=$2 ;;
        --tries) number "$1" "$2"; tries=$((10#$2)) ;;
        --first-wait) number "$1" "$2"; first_wait=$((10#$2)) ;;
        --longest-wait) number "$1" "$2"; longest_wait=$((10#$2)) ;;
      esac
      shift 2 ;;
    -h|--help) usage; exit 0 ;;
    --) shift; break ;;
    *) wrong_use "unknown option '$1'; the command follows after --" ;;
  esac
done
[ $# -gt 0 ] || wrong_use "no command after --"
[ "$tries" -gt 0 ] || wrong_use "--tries must be at least 1"

command=("$@")
if [ "${command[0]}" = train_gpt_v2 ]; then
  program=${TRAIN_GPT_V2:-$(dirname "${BASH_SOURCE[0]}")/../build/release/bin/train_gpt_v2}
  [ -x "$program" ] || program=$(command -v train_gpt_v2) || wrong_use "train_gpt_v2 is not built; set TRAIN_GPT_V2"
  command[0]=$program
fi

# The run directory as the program finds it: --output-dir, else runs/<name of the config>.
if [ -z "$run_dir" ]; then
  config=""
  for ((i = 1; i < ${#command[@]}; i++)); do
    case "${command[i]}" in
      --output-dir) run_dir=${command[i + 1]:-} ;;
      --output-dir=*) run_dir=${command[i]#*=} ;;
      --config) config=${command[i + 1]:-} ;;
      --config=*) config=${command[i]#*=} ;;
    esac
  done
  if [ -z "$run_dir" ]; then
    [ -n "$config" ] || wrong_use "the command names no run directory: give --run-dir"
    config=${config##*/}
    config=${config%.json}  # and no other ending, as the program names its runs
    run_dir=runs/${config:-config}
  fi
fi

newest_step() {
  local file step newest=-1
  for file in "$run_dir"/model_step*.pth; do
    step=${file##*/model_step}
    step=${step%.pth}
    case "$step" in ''|*[!0-9]*|???????????????*) continue ;; esac
    [ $((10#$step)) -le "$newest" ] || newest=$((10#$step))
  done
  echo "$newest"
}

stop="" told=yes
for signal in INT TERM HUP; do
  # shellcheck disable=SC2064
  trap "stop=$signal told=no" "$signal"
done

# Runs "$@", passes signals on to it, and leaves its status in $status. It looks instead of sleeping in `wait`: a trap
# that falls due just before `wait` blocks would run only after the command's end.
run() {
  local rounds=0 pause=0.1 child
  # A process group of its own, so that Ctrl-C reaches the command once, through here, and not a second time.
  set -m
  "$@" </dev/null &
  child=$!
  set +m
  while kill -s 0 -- "$child" 2>/dev/null; do
    sleep "$pause" || true  # Ctrl-C reaches this sleep too
    # Between fork and exec the command is still this shell and would swallow a signal: not in its first two seconds.
    # Counted in rounds: the seconds that bash counts follow a clock that may be set back.
    rounds=$((rounds + 1))
    [ "$rounds" -ge 20 ] || continue
    pause=1
    [ "$told" = yes ] || { told=yes; kill -s "$stop" -- "$child" 2>/dev/null || true; }
  done
  status=0
  wait "$child" || status=$?
}

signal_number() { case "$1" in INT) echo 130 ;; TERM) echo 143 ;; HUP) echo 129 ;; esac; }

failures=0
while :; do
  before=$(newest_step)
  run "${command[@]}"
  after=$(newest_step)
  if [ "$status" = 0 ]; then
    if [ -e "$run_dir/DONE" ]; then
      say "done: $run_dir/DONE"
    else
      say "the command ended well without a DONE mark in $run_dir (--max-steps, or another command than train)"
    fi
    exit 0
  fi
  [ -z "$stop" ] || { say "stopped by SIG$stop; the command ended with status $status"; exit "$status"; }
  case "$status" in
    75|83|129|143) ;;
    130) say "stopped by hand (status 130); start again to continue"; exit 130 ;;
    *) [ "$status" -gt 128 ] || { say "status $status: a rerun would not help; see the error above"; exit "$status"; } ;;
  esac

  if [ "$after" -gt "$before" ]; then failures=0; else failures=$((failures + 1)); fi
  if [ "$failures" -ge "$tries" ]; then
    say "giving up: $tries failures in a row without a newer checkpoint than step $after; last status $status"
    exit "$status"
  fi
  wait_seconds=$first_wait
  for ((i = 1; i < failures && wait_seconds < longest_wait; i++)); do wait_seconds=$((wait_seconds * 2)); done
  [ "$wait_seconds" -le "$longest_wait" ] || wait_seconds=$longest_wait
  say "status $status, newest checkpoint: step $after; starting again in $wait_seconds s ($failures of $tries tries in vain)"
  run sleep "$wait_seconds"
  [ -z "$stop" ] || { say "stopped by SIG$stop while waiting"; exit "$(signal_number "$stop")"; }
done
