#!/usr/bin/env bash
# The cycle of phase 2: Fisher information, adapters trained with and without guards, merge, comparison, report.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: scripts/phase2.sh --config C --output DIR [options]

Fine-tunes a base model to a new language as C says (adapters, groups, what trains beside them), measures what the old
languages lose without a guard, with EWC, with replay and with merges at reduced scale, merges the best run into one
plain checkpoint, and compares it with its adapters. The same command again continues where it stopped.

With C's own data: the base is init.from, the protected languages are --protect (else the manifests of data.replay).
With the demo's (--data demo; chosen when C's files are not there): a base model is trained on the demo's first voices,
the second voices are the new language. C gives the method; sizes, data and steps become the demo's, rates grow with it.

  --smoke                the same path at the smallest size
  --data config|demo     whose data (default: config if its manifests and init.from exist, else demo)
  --protect MANIFEST     validation pairs of a language to protect; repeatable
  --guards LIST          of none,ewc,replay: the runs to make (default all three; `config`: one, exactly as C says)
  --steps N              steps of each run (default with the demo 300, --smoke 12; else as C says)
  --scales LIST          merges of the run without guards to measure (default 0.25,0.5,0.75)
  --replay-share X       share of old samples in the run with replay (0.05)
  --fisher-samples N     samples for the Fisher information (default 500, --smoke 16)
  --min-top1 X           target: mel_top1 of the merged model on the new language (0.35)
  --max-mel-loss X       target: its mel loss there is below X (4.0)
  --max-forgetting X     target: relative growth of the mel loss on each protected manifest (0.02)
  --max-overhead X       target: processor time of the merged model over the base's (1.1)
  --device D             as in train_gpt_v2 (auto)
  --set section.key=VALUE  over C; repeatable

Written: DIR/phase2.json (everything measured, verdict per target), DIR/report.html, DIR/merged_final.pth, the runs below
DIR/runs, DIR/fisher.safetensors. The program is build/release/bin/train_gpt_v2 or $TRAIN_GPT_V2; python3 does the
arithmetic (scripts/phase2_cycle.py).

Exit status: 0 every target met, 10 a target missed, 64 wrong use, 66 a file is missing; that of the program when a
step failed or was stopped by a signal.
USAGE
}

fail() { local status=$1; shift; printf 'phase2: %s\n' "$*" >&2; exit "$status"; }

config="" output=""
options=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h|--help) usage; exit 0 ;;
    --smoke) options+=(--smoke); shift; continue ;;
    --*=*) argument=$1; shift; set -- "${argument%%=*}" "${argument#*=}" "$@"; continue ;;
  esac
  case "$1" in
    --config|--output|--data|--protect|--guards|--steps|--scales|--replay-share|--fisher-samples|--min-top1|\
    --max-mel-loss|--max-forgetting|--max-overhead|--device|--set)
      [ $# -gt 1 ] || fail 64 "$1 needs a value" ;;
    *) fail 64 "unknown option '$1' (--help shows the options)" ;;
  esac
  case "$1" in
    --config) config=$2 ;;
    --output) output=$2 ;;
    --data) case "$2" in config|demo) ;; *) fail 64 "--data takes config or demo, not '$2'" ;; esac ;;
    --guards)
      [[ ,$2 =~ ^(,(none|ewc|replay))+$ || $2 = config ]] || fail 64 "--guards takes a list of none, ewc, replay, or config; not '$2'" ;;
    --scales) [[ ,$2 =~ ^(,(0|1|0?\.[0-9]+|0\.[0-9]+))+$ || -z $2 ]] || fail 64 "--scales takes numbers from 0 to 1, not '$2'" ;;
    --steps|--fisher-samples)
      case "$2" in ''|*[!0-9]*|0*|??????????*) fail 64 "$1 takes a whole number above 0, not '$2'" ;; esac ;;
    --replay-share|--min-top1|--max-mel-loss|--max-forgetting|--max-overhead)
      [[ $2 =~ ^[0-9]*\.?[0-9]+$ ]] || fail 64 "$1 takes a number, not '$2'" ;;
  esac
  case "$1" in --config|--output) ;; *) options+=("$1=$2") ;; esac
  shift 2
done
if [ -z "$config" ] || [ -z "$output" ]; then usage >&2; exit 64; fi
[ -f "$config" ] || fail 66 "there is no file $config"
here=$(dirname "${BASH_SOURCE[0]}")
program=${TRAIN_GPT_V2:-$here/../build/release/bin/train_gpt_v2}
[ -x "$program" ] || program=$(command -v train_gpt_v2) || fail 64 "train_gpt_v2 is not built; set TRAIN_GPT_V2"
command -v python3 >/dev/null || fail 64 "python3 is needed"
mkdir -p "$output" || fail 73 "cannot create $output"

exec python3 "$here/phase2_cycle.py" --program "$program" --config "$config" --output "$output" ${options[@]+"${options[@]}"}
