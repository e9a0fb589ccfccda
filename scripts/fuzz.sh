#!/usr/bin/env bash
# Fuzzes everything that reads bytes from outside (tests/fuzz) with libFuzzer under ASan and UBSan.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'USAGE'
usage: scripts/fuzz.sh [--runs N] [--seconds S] [TARGET...]

Builds the preset fuzz (clang) and runs every target, or those named. What they find grows in build/fuzz/corpus; an
input that breaks something is left in build/fuzz/findings.

  --runs N      executions per target (default 1000000; npy ten times as many)
  --seconds S   stop each target after S seconds, whatever its number of executions

Prints one line per target: FIGURE, name, executions, lost (0), findings. Exit status: 0 no finding, 1 findings,
75 clang or its libFuzzer is not installed (apt-get install clang).
USAGE
}

runs=1000000 seconds=0 targets=()
while [ $# -gt 0 ]; do
  case "$1" in
    --runs|--seconds)
      case "${2:-}" in ''|*[!0-9]*) echo "fuzz.sh: $1 takes a whole number" >&2; exit 64 ;; esac
      if [ "$1" = --runs ]; then runs=$2; else seconds=$2; fi
      shift 2 ;;
    -h|--help) usage; exit 0 ;;
    -*) usage >&2; exit 64 ;;
    *) targets+=("$1"); shift ;;
  esac
done

command -v clang++ >/dev/null || { echo "fuzz.sh: clang++ is not installed: apt-get install clang" >&2; exit 75; }
mkdir -p build
if ! { cmake --preset fuzz && cmake --build --preset fuzz; } >build/fuzz.log 2>&1; then
  tail -n 20 build/fuzz.log >&2
  exit 75
fi
program=build/fuzz/bin/fuzz_targets
if [ ${#targets[@]} = 0 ]; then
  for folder in tests/fuzz/corpus/*/; do targets+=("$(basename "$folder")"); done
fi

for target in "${targets[@]}"; do
  [ -d "tests/fuzz/corpus/$target" ] || { echo "fuzz.sh: no target is called $target" >&2; exit 64; }
done

# fuzz TARGET: its line. Exit status 1 for a finding.
fuzz() {
  local target=$1 wanted=$runs status=0 log=build/fuzz/$1.log executed
  mkdir -p "build/fuzz/corpus/$target"
  [ "$target" != npy ] || wanted=$((runs * 10))
  TGV2_FUZZ_TARGET=$target "$program" -runs="$wanted" -max_total_time="$seconds" -max_len=4096 -timeout=60 -rss_limit_mb=1024 \
    -print_final_stats=1 -artifact_prefix="build/fuzz/findings/$target-" \
    "build/fuzz/corpus/$target" "tests/fuzz/corpus/$target" >"$log" 2>&1 || status=$?
  executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  [ "$status" = 0 ] || { status=1; grep -m 3 -E 'ERROR|SUMMARY|runtime error' "$log" >&2 || tail -n 5 "$log" >&2; }
  printf 'FIGURE\tfuzz: %s\t%s\t0\t%s\n' "$target" "${executed:-?}" "$status"
  return "$status"
}

# As many at a time as there are processors: a target runs on one.
mkdir -p build/fuzz/findings
found=0 running=0
for target in "${targets[@]}"; do
  if [ "$running" -ge "$(nproc)" ]; then
    wait -n || found=1
    running=$((running - 1))
  fi
  fuzz "$target" &
  running=$((running + 1))
done
while [ "$running" -gt 0 ]; do
  wait -n || found=1
  running=$((running - 1))
done
exit "$found"
