#!/usr/bin/env bash
# Measures the trainer, and compares it with another one in the same run: a table on stdout, the same as JSON.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: scripts/bench.sh [--against "COMMAND"]... [options]

Measures one training step and what it is made of, the components, how cost grows with sequence, batch, data and steps.

  --against "COMMAND"  also compare with another trainer that takes the same order file and writes its losses and times as
                       JSONL, run by run in turn; losses (dropout 0, 20 steps) are compared before times. For example
                       --against "python3 tests/bench/python_trainer.py --variant as_shipped"
                       (tests/bench/bench.py lists the arguments that are added to the command). Repeatable.
  --ranks N            also the same windows on one rank and on N of this machine: efficiency
  --only-against       nothing but these comparisons
  --quick              small model and small data: minutes instead of an hour; no figures to publish
  --threads N          threads of both sides (default: all cores)
  --clock wall|cpu     cpu: processor time of the process, for machines that are not idle (default wall)
  --device cpu|cuda    where our trainer runs in the step and in comparisons (the other one: as its command says)
  --dim D, --layers L, --batch B   another model than 512, 12 and 4 samples
  --peak TFLOPS        of the device, for the utilisation (default: against the fastest matrix product measured)
  --json FILE          where the JSON goes (default bench.json in the working directory)
  -h, --help           this text

The programs are built when they are not there; the trainer is that of $TRAIN_GPT_V2, or build/release/bin.
Exit status: 0 measured, 1 a measurement failed or losses differ, 64 wrong use.
USAGE
}

wrong_use() { printf 'bench: %s (--help shows the options)\n' "$1" >&2; exit 64; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
json=bench.json
words=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h|--help) usage; exit 0 ;;
    --quick|--only-against) words+=("$1"); shift ;;
    --against|--ranks|--threads|--clock|--device|--dim|--layers|--batch|--peak|--json)
      [ $# -gt 1 ] || wrong_use "$1 needs a value"
      case "$1" in
        --ranks|--threads|--dim|--layers|--batch)
          case "$2" in ''|0*|*[!0-9]*) wrong_use "$1 takes a whole number above 0, not '$2'" ;; esac ;;
        --device) [ "$2" = cpu ] || [ "$2" = cuda ] || wrong_use "--device is cpu or cuda, not '$2'" ;;
        --peak) case "$2" in ''|.|*[!0-9.]*|*.*.*) wrong_use "--peak takes a number, not '$2'" ;; esac ;;
        --clock) [ "$2" = wall ] || [ "$2" = cpu ] || wrong_use "--clock is wall or cpu, not '$2'" ;;
        --against) [ -n "$2" ] || wrong_use "--against needs a command" ;;
      esac
      if [ "$1" = --json ]; then json=$2; else words+=("$1" "$2"); fi
      shift 2 ;;
    *) wrong_use "unknown option '$1'" ;;
  esac
done
case " ${words[*]-} " in
  *" --only-against "*) case " ${words[*]} " in *" --against "*|*" --ranks "*) ;; *) wrong_use "--only-against needs --against or --ranks" ;; esac ;;
esac

bin=$root/build/release/bin
program=${TRAIN_GPT_V2:-$bin/train_gpt_v2}
if [ ! -x "$bin/bench_train" ] || [ ! -x "$bin/bench_kernels" ] || [ ! -x "$program" ]; then
  (cd "$root" && cmake --preset release && cmake --build --preset release --target train_gpt_v2 bench_train bench_kernels) >&2
fi
exec python3 "$root/tests/bench/bench.py" --program "$program" --bench-train "$bin/bench_train" --bench-kernels "$bin/bench_kernels" \
  --json "$json" ${words[@]+"${words[@]}"}
