#!/usr/bin/env bash
# Takes a run back to an earlier checkpoint without deleting anything.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: scripts/rollback.sh RUN_DIR [--to STEP]

Takes the run in RUN_DIR back to the checkpoint of STEP. Without --to: to the last good one, that is the newest that
verifies (train_gpt_v2 inspect --verify) and before which the last logged loss is a number.

Whatever is later (checkpoints, best files, samples, DONE, the uncut metrics.jsonl) moves to RUN_DIR/set_aside/<time>/;
latest.pt and latest.pth point to the checkpoint; config.effective.json is again the configuration it was written with;
metrics.jsonl is cut behind it and gets a rollback event.
Refused while a process trains in RUN_DIR. The program is build/release/bin/train_gpt_v2 or $TRAIN_GPT_V2.

Exit status: 0 rolled back (the command that goes on is printed), 64 wrong use, 65 no checkpoint that verifies,
66 no such directory or checkpoint, 73 a file could not be moved, 75 the run directory is in use.
USAGE
}

say() { printf 'rollback: %s\n' "$*" >&2; }
fail() { local status=$1; shift; say "$*"; exit "$status"; }

run_dir="" target=""
while [ $# -gt 0 ]; do
  case "$1" in
    --to) [ $# -gt 1 ] || fail 64 "--to needs a step"; target=$2; shift 2 ;;
    --to=*) target=${1#*=}; shift ;;
    -h|--help) usage; exit 0 ;;
    -*) fail 64 "unknown option '$1' (--help shows the options)" ;;
    *) [ -z "$run_dir" ] || fail 64 "one run directory, not '$run_dir' and '$1'"; run_dir=$1; shift ;;
  esac
done
[ -n "$run_dir" ] || { usage >&2; exit 64; }
case "$target" in *[!0-9]*|???????????????*) fail 64 "--to takes a step, not '$target'" ;; esac
[ -z "$target" ] || target=$((10#$target))
[ -d "$run_dir" ] || fail 66 "there is no directory $run_dir"
run_dir=${run_dir%/}

program=${TRAIN_GPT_V2:-$(dirname "${BASH_SOURCE[0]}")/../build/release/bin/train_gpt_v2}
[ -x "$program" ] || program=$(command -v train_gpt_v2) || fail 64 "train_gpt_v2 is not built; set TRAIN_GPT_V2"

# The same lock as training takes (core/filesystem.h RunLock).
exec 9>>"$run_dir/.lock" || fail 73 "cannot write in $run_dir"
flock -n 9 || fail 75 "a process is training in $run_dir; stop it first (touch $run_dir/stop)"
trap 'rm -f "$run_dir/.lock"' EXIT

# "STEP FILE" of every checkpoint, newest first.
checkpoints() {
  local file step
  for file in "$run_dir"/model_step*.pth; do
    step=${file##*/model_step}
    step=${step%.pth}
    case "$step" in ''|*[!0-9]*|???????????????*) continue ;; esac
    [ -f "$file" ] && printf '%d %s\n' "$((10#$step))" "$file"
  done | sort -rn
}

verifies() { "$program" inspect --verify "$1" >/dev/null 2>&1; }

# The step of a metrics line is its first "step" field.
metrics=$run_dir/metrics.jsonl
step_of_line='function step_of(line) {
  if (!match(line, /"step"[ \t]*:[ \t]*[0-9]+/)) return -1
  line = substr(line, RSTART, RLENGTH); sub(/.*:[ \t]*/, "", line); return line + 0
}'

loss_is_number() {
  [ -f "$metrics" ] || return 0
  awk -v to="$1" "$step_of_line"'
    /"type"[ \t]*:[ \t]*"train"/ && step_of($0) <= to { last = $0 }
    END { exit (last != "" && last !~ /"loss"[ \t]*:[ \t]*-?[0-9]/) }' "$metrics"
}

chosen=""
while read -r step file; do
  if [ -n "$target" ]; then
    [ "$step" = "$target" ] || continue
    verifies "$file" || fail 65 "$file is damaged (train_gpt_v2 inspect --verify $file); choose another step"
  else
    verifies "$file" || { say "$file does not verify; looking further back"; continue; }
    loss_is_number "$step" || { say "the loss before step $step is not a number; looking further back"; continue; }
  fi
  chosen=$file target=$step
  break
done < <(checkpoints)
if [ -z "$chosen" ]; then
  [ -z "$target" ] || fail 66 "there is no $run_dir/model_step$target.pth"
  [ -n "$(checkpoints)" ] || fail 66 "there is no checkpoint in $run_dir"
  fail 65 "no checkpoint in $run_dir is good; nothing was changed"
fi

# --- from here on files move; each move is a rename inside the run directory -------------------------------------------
aside=$run_dir/set_aside/$(date -u +%Y%m%dT%H%M%SZ)
while ! mkdir -p "$run_dir/set_aside" || ! mkdir "$aside" 2>/dev/null; do
  [ -d "$aside" ] || fail 73 "cannot create $aside"
  aside=${aside}_
done
moved=0
set_aside() {
  mv -n -- "$1" "$aside/" || fail 73 "could not move $1; nothing is lost: run the same command again"
  moved=$((moved + 1))
}

while read -r step file; do
  [ "$step" -le "$target" ] || set_aside "$file"
done < <(checkpoints)

# A best file knows its step; where it does not say, a file newer than the checkpoint counts as later.
best_is_later() {
  local step
  step=$("$program" inspect --json "$1" 2>/dev/null | grep -oE '"step" *: *[0-9]+' | head -n 1 | grep -oE '[0-9]+$') || step=""
  if [ -n "$step" ]; then [ "$step" -gt "$target" ]; else [ "$1" -nt "$chosen" ]; fi
}
for file in "$run_dir"/best_*.pth; do
  [ -f "$file" ] || continue
  if best_is_later "$file"; then set_aside "$file"; fi
done
for folder in "$run_dir"/samples/step_*; do
  step=${folder##*/step_}
  case "$step" in ''|*[!0-9]*|???????????????*) continue ;; esac
  if [ $((10#$step)) -gt "$target" ]; then
    mkdir -p "$aside/samples"
    mv -n -- "$folder" "$aside/samples/" || fail 73 "could not move $folder"
    moved=$((moved + 1))
  fi
done
[ ! -e "$run_dir/DONE" ] || set_aside "$run_dir/DONE"

for name in latest.pt latest.pth; do
  latest=$run_dir/$name
  [ "$latest" -ef "$chosen" ] && continue
  # A latest file that is no second name of a checkpoint would be lost by renaming over it.
  if [ -f "$latest" ] && [ ! -L "$latest" ] && [ "$(stat -c %h "$latest")" = 1 ]; then set_aside "$latest"; fi
  temporary=$run_dir/.$name.rollback.$$
  rm -f "$temporary"
  ln "$chosen" "$temporary" 2>/dev/null || ln -s "${chosen##*/}" "$temporary"
  mv -fT "$temporary" "$latest"
  [ "$latest" -ef "$chosen" ] || fail 73 "$latest does not point to $chosen"
done
verifies "$run_dir/latest.pt" || fail 65 "$run_dir/latest.pt does not verify"

# What was switched on later is off again. A checkpoint of the Python trainer holds no configuration.
config=$run_dir/config.effective.json
temporary=$config.rollback.$$
if "$program" config show --checkpoint "$chosen" >"$temporary" 2>/dev/null && [ -s "$temporary" ]; then
  [ ! -f "$config" ] || cp -p -- "$config" "$aside/"
  mv -fT "$temporary" "$config"
else
  rm -f "$temporary"
fi

if [ -f "$metrics" ]; then
  cp -p -- "$metrics" "$aside/metrics.jsonl"
  temporary=$metrics.rollback.$$
  awk -v to="$target" "$step_of_line"' /}[ \t\r]*$/ && step_of($0) >= 0 && step_of($0) <= to' "$metrics" >"$temporary"
  printf '{"v":1,"type":"event","step":%d,"event":"rollback","by":"rollback.sh","set_aside":"%s","time":%d}\n' \
    "$target" "${aside##*/}" "$(date +%s)" >>"$temporary"
  mv -fT "$temporary" "$metrics"
fi
sync "$run_dir" 2>/dev/null || true

say "$run_dir is back at step $target; $moved later files are in $aside"
[ -f "$config" ] || config=YOUR_CONFIG.json
printf '%q --config %q --output-dir %q\n' "$program" "$config" "$run_dir"
