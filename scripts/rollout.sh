#!/usr/bin/env bash
# Adds the six improvements of phase 1 to a run one at a time, each beside a control run, and keeps what passes the gates.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: scripts/rollout.sh --config C --resume CKPT --output DIR [options]

For each of clipping, best, validation, ema, bucketing, early_stopping, in this order: a control run (what was kept so
far) and a candidate run (the same and the improvement) of --steps steps from CKPT, then the gates: losses, NaN, trend,
top-1, memory, speed, save and load, counters. What fails is rolled back (left out of what follows) with the reason.
In the end all that was kept runs together for --integration-steps, the first half beside a control without any of it,
and the prompts (sampling.cases, else the first 5 validation pairs) are sampled from CKPT and from its last checkpoint.
CKPT is only read; every run has its own directory below DIR/runs, and nothing is deleted.

  --only NAME              one improvement against the control, without the integration
  --steps N                steps of each run (150)
  --integration-steps N    steps of the integration run (2000)
  --min-top1 X             smallest mean mel_top1 that passes (0.12)
  --min-speed X            smallest speed, as a share of the control's, that passes (0.95)
  --max-codes N            longest sample of a prompt (1500)
  --timeout SECONDS        limit of one run (86400); a candidate at most 120 s + 5 times its control
  --device D               as in train_gpt_v2 (auto)
  --set section.key=VALUE  for every run; repeatable

Written: DIR/rollout.jsonl (one object per improvement, then `integration`), DIR/prompts, DIR/report.html, a table on
stdout. To take a run directory of your own back behind an improvement: scripts/rollback.sh.
The program is build/release/bin/train_gpt_v2 or $TRAIN_GPT_V2; python3 does the arithmetic (scripts/rollout_gates.py).

Exit status: 0 all kept, 10 something rolled back, 64 wrong use, 66 a file is missing, 73 DIR cannot be made or holds a
rollout already, 70 and others above 64: could not be judged (the control failed; its status is passed on), 129, 130, 143
stopped: SIGHUP, SIGINT and SIGTERM go on to the run, and `failed` is written down.
USAGE
}

fail() { local status=$1; shift; printf 'rollout: %s\n' "$*" >&2; exit "$status"; }

config="" resume="" output=""
options=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h|--help) usage; exit 0 ;;
    --*=*) argument=$1; shift; set -- "${argument%%=*}" "${argument#*=}" "$@"; continue ;;
  esac
  case "$1" in
    --config|--resume|--output|--only|--steps|--integration-steps|--min-top1|--min-speed|--max-codes|--timeout|--device|--set)
      [ $# -gt 1 ] || fail 64 "$1 needs a value" ;;
    *) fail 64 "unknown option '$1' (--help shows the options)" ;;
  esac
  case "$1" in
    --config) config=$2 ;;
    --resume) resume=$2 ;;
    --output) output=$2 ;;
    --only)
      case "$2" in
        clipping|best|validation|ema|bucketing|early_stopping) options+=(--only "$2") ;;
        *) fail 64 "--only takes clipping, best, validation, ema, bucketing or early_stopping, not '$2'" ;;
      esac ;;
    --steps|--integration-steps|--max-codes|--timeout)
      case "$2" in ''|*[!0-9]*|0*|??????????*) fail 64 "$1 takes a whole number above 0, not '$2'" ;; esac
      options+=("$1" "$2") ;;
    --min-top1|--min-speed)
      [[ $2 =~ ^[0-9]*\.?[0-9]+$ ]] || fail 64 "$1 takes a number, not '$2'"
      options+=("$1" "$2") ;;
    *) options+=("$1=$2") ;;
  esac
  shift 2
done
if [ -z "$config" ] || [ -z "$resume" ] || [ -z "$output" ]; then usage >&2; exit 64; fi
[ -f "$config" ] || fail 66 "there is no file $config"
[ -f "$resume" ] || fail 66 "there is no checkpoint $resume"
here=$(dirname "${BASH_SOURCE[0]}")
program=${TRAIN_GPT_V2:-$here/../build/release/bin/train_gpt_v2}
[ -x "$program" ] || program=$(command -v train_gpt_v2) || fail 64 "train_gpt_v2 is not built; set TRAIN_GPT_V2"
command -v python3 >/dev/null || fail 64 "python3 is needed"
mkdir -p "$output" || fail 73 "cannot create $output"
if [ -e "$output/rollout.jsonl" ] || [ -e "$output/runs" ]; then fail 73 "$output holds a rollout already; choose another directory"; fi

exec python3 "$here/rollout_gates.py" --program "$program" --config "$config" --resume "$resume" --output "$output" \
  ${options[@]+"${options[@]}"}
