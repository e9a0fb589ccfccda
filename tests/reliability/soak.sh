#!/usr/bin/env bash
# A long run of a tiny model with saves, validation, sampling and resumes: memory, descriptors, threads and disk stay flat.
# usage: soak.sh [STEPS]; every tenth of them another process continues.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
set -e
fail() { echo "FAILED: $*"; exit 1; }
program=${TGV2_BINARY:?the program under test}
steps=${1:-20000}
part=$((steps / 10))

write_config "$work/run.json" '{"train": {"max_steps": '"$steps"', "epochs": null, "log_interval": 50}, "optimizer": {"schedule": "constant"},
  "validation": {"interval": 200}, "checkpoint": {"interval": 100, "keep_every": '"$((part * 5))"'}, "ema": {"enabled": true},
  "sampling": {"interval": 250, "count": 2, "max_codes": 12},
  "logging": {"tensorboard": true, "progress": "off"}}'
run=$work/run
begin=$(date +%s)
for ((i = 1; i <= 10; ++i)); do
  "$program" --config "$work/run.json" --output-dir "$run" --device cpu -q --max-steps $((part * i)) &
  pid=$!
  sleep 3
  while kill -0 "$pid" 2>/dev/null; do
    # Resident KiB, open descriptors, threads, KiB on disk; a process that just ended gives no line.
    resident=$(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$pid/status" 2>/dev/null || true)
    threads=$(sed -n 's/^Threads:[^0-9]*//p' "/proc/$pid/status" 2>/dev/null || true)
    descriptors=$(find "/proc/$pid/fd" -type l 2>/dev/null | wc -l || true)
    disk=$(du -sk "$run" 2>/dev/null | cut -f1 || true)
    [ -z "$resident" ] || [ -z "$threads" ] || [ "$descriptors" = 0 ] || echo "$i $resident $descriptors $threads $disk" >>"$work/samples"
    sleep 1
  done
  wait "$pid" || fail "part $i ended with status $?"
done
[ -e "$run/DONE" ] || fail "no DONE"
[ "$(find "$run/samples" -name notes.json | wc -l)" -ge $((steps / 250)) ] || fail "samples are missing"
python3 - "$work/samples" "$steps" $(($(date +%s) - begin)) <<'PYTHON'
import statistics, sys
rows = [list(map(int, line.split())) for line in open(sys.argv[1])]
steps, seconds = int(sys.argv[2]), int(sys.argv[3])
assert len(rows) >= 10, f"only {len(rows)} samples; the run is too short"
problems = []
for column, name, growth, slack in ((1, "resident KiB", 1.05, 8192), (2, "descriptors", 1.0, 3), (3, "threads", 1.0, 2)):
    slopes = []
    for part in sorted({row[0] for row in rows}):
        values = [row[column] for row in rows if row[0] == part]
        if len(values) >= 6:  # the last third against the middle one: the beginning fills caches
            third = len(values) // 3
            slopes.append(statistics.median(values[-third:]) - statistics.median(values[third:2 * third]))
    values = [row[column] for row in rows]
    if slopes and statistics.median(slopes) > (growth - 1) * statistics.median(values) + slack / 4:
        problems.append(f"{name} grows within a process: {slopes}")
    last, first = [[row[column] for row in rows if row[0] == part] for part in (rows[-1][0], rows[len(rows) // 5][0])]
    if max(last) > growth * max(first) + slack:
        problems.append(f"{name} grows from process to process: {max(first)} -> {max(last)}")
    print(f"{name}: {min(values)} .. {max(values)}")
disk = [row[4] for row in rows]
quarter = max(disk[len(disk) // 5: len(disk) // 2])
if disk[-1] > 1.5 * quarter + 20480:
    problems.append(f"disk grows: {quarter} -> {disk[-1]} KiB")
print(f"disk KiB: {disk[0]} .. {max(disk)}; {steps} steps in {seconds} s")
print(f"FIGURE\tsoak: steps\t{steps}\t{len(problems)}\t0")
assert not problems, problems
PYTHON
