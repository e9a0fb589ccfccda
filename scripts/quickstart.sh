#!/usr/bin/env bash
# From a fresh clone to a trained demo model: set-up, build, corpus, training, comparison with a bigram.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What the caller names is relative to where he stands, the defaults are relative to the clone.
from_caller() {
  case $1 in
    /*) printf '%s\n' "$1" ;;
    *) printf '%s\n' "$caller/$1" ;;
  esac
}

usage() {
  cat <<'USAGE'
usage: scripts/quickstart.sh [--smoke] [--data DIR] [--run DIR] [--no-build]

Sets up, builds, makes the demo corpus (Amharic text from Debian's packages, speech by espeak-ng), trains a small
UnifiedVoice on it and writes RUN/summary.json: the validation mel loss beside that of a bigram of the codes.
What is already there is kept; the same command again continues an interrupted training.

  --smoke     a corpus of 200 clips and 40 steps: the same path in about 90 seconds
  --data DIR  where the corpus goes (default data/demo, with --smoke data/demo-smoke)
  --run DIR   where the run goes (default runs/demo, with --smoke runs/demo-smoke)
  --no-build  use the program that is there (TRAIN_GPT_V2, else build/release/bin/train_gpt_v2)

Exit status: that of the step that failed; the trainer's are listed by train_gpt_v2 --help.
USAGE
}

smoke=no
build=yes
data=""
run=""
while [ $# -gt 0 ]; do
  case "$1" in
    --smoke) smoke=yes ;;
    --no-build) build=no ;;
    --data|--run)
      [ -n "${2:-}" ] || { usage >&2; exit 64; }
      if [ "$1" = --data ]; then data=$(from_caller "$2"); else run=$(from_caller "$2"); fi
      shift ;;
    -h|--help) usage; exit 0 ;;
    *) usage >&2; exit 64 ;;
  esac
  shift
done

settings=()
if [ "$smoke" = yes ]; then
  data=${data:-data/demo-smoke}
  run=${run:-runs/demo-smoke}
  corpus=(--utterances 200)
  settings=(--set train.max_steps=40 --set optimizer.warmup_steps=10 --set validation.interval=20
    --set checkpoint.interval=20 --set logging.tensorboard=false)
else
  data=${data:-data/demo}
  run=${run:-runs/demo}
  corpus=()
fi

program=build/release/bin/train_gpt_v2
[ -z "${TRAIN_GPT_V2:-}" ] || program=$(from_caller "$TRAIN_GPT_V2")
if [ "$build" = yes ]; then
  export HOME=${HOME-~}  # cron and systemd leave it out; CMake looks there for what setup.sh fetched
  scripts/setup.sh
  cmake --preset release
  cmake --build --preset release --target train_gpt_v2
fi
if [ ! -x "$program" ]; then
  echo "quickstart: no program at $program; build it, or name it in TRAIN_GPT_V2" >&2
  exit 66
fi

"$program" demo-data --out "$data" "${corpus[@]}"
"$program" train --config "$data/demo.json" --output-dir "$run" --resume auto --device cpu "${settings[@]}"
"$program" demo-summary "$run"

cat <<LOOK

The run is in $run:
  summary.json           the figures above
  metrics.jsonl, log.txt one line per logged step; tensorboard --logdir $run shows them as curves
  best_model.pth         the weights with the best validation mel loss
$(if [ -d "$run/samples" ]; then echo "  samples/step_N         what the model said at that step: codes, alignment, sound, a sheet for your notes"; fi)
Look closer:
  $program eval --checkpoint $run/best_model.pth --manifest $data/val_pairs.jsonl --per-sample
  $program inspect $run/latest.pt
  $program report $run --output $run/report.html
LOOK
