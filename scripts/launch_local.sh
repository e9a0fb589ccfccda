#!/usr/bin/env bash
# N ranks of one run on this machine, by torchrun's variables. On GPUs each rank takes the GPU of its local rank.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: scripts/launch_local.sh -n N -- train_gpt_v2 --config C ...

Starts the command N times as the ranks of one data-parallel run. SIGINT, SIGTERM, SIGHUP and SIGUSR1 go to all ranks;
they agree and save once. When a rank ends with an error the others follow within seconds; those that do not are stopped.
TRAIN_GPT_V2 names the program where the command says train_gpt_v2. MASTER_PORT chooses the port of the ranks' store.

Exit status: that of the first rank that failed, else 0.
USAGE
}

count=""
while [ $# -gt 0 ]; do
  case "$1" in
    -n) count=${2:-}; shift 2 || { usage >&2; exit 64; } ;;
    -h|--help) usage; exit 0 ;;
    --) shift; break ;;
    *) usage >&2; exit 64 ;;
  esac
done
case "$count" in ''|*[!0-9]*|??????*) usage >&2; exit 64 ;; esac
count=$((10#$count))  # 08 is no octal number
[ "$count" -gt 0 ] || { usage >&2; exit 64; }
[ $# -gt 0 ] || { usage >&2; exit 64; }
if [ "$1" = train_gpt_v2 ]; then
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  program=${TRAIN_GPT_V2:-$root/build/release/bin/train_gpt_v2}
  [ -x "$program" ] || { echo "launch_local: no program at $program; build it, or set TRAIN_GPT_V2" >&2; exit 66; }
  shift
  set -- "$program" "$@"
fi

# One that nobody listens on now, below those that Linux gives to outgoing connections (32768 on): such a one may be
# taken without a listener.
free_port() {
  local port
  for _ in $(seq 50); do
    port=$((20000 + RANDOM % 12000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
  echo 29500
}
port=${MASTER_PORT:-$(free_port)}
threads=${OMP_NUM_THREADS:-$(( ($(nproc) + count - 1) / count ))}

ranks=()
trap '[ ${#ranks[@]} = 0 ] || kill -TERM "${ranks[@]}" 2>/dev/null || true' EXIT
# shellcheck disable=SC2317
forward() { kill -s "$1" "${ranks[@]}" 2>/dev/null || true; }
for signal in INT TERM HUP USR1; do
  # shellcheck disable=SC2064
  trap "forward $signal" "$signal"
done
# Process groups of their own, so that Ctrl-C reaches the ranks once, through here, and not a second time, which would
# end them unsaved.
set -m
for ((rank = 0; rank < count; rank++)); do
  RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=$count LOCAL_WORLD_SIZE=$count MASTER_ADDR=127.0.0.1 MASTER_PORT=$port \
    OMP_NUM_THREADS=$threads "$@" </dev/null &
  ranks+=($!)
done
set +m

status=0
rounds_since_failure=0  # of 0.2 s: the seconds that bash counts follow a clock that may be set
while [ ${#ranks[@]} -gt 0 ]; do
  left=()
  for pid in "${ranks[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then left+=("$pid"); continue; fi
    code=0
    wait "$pid" || code=$?
    if [ "$code" != 0 ] && [ "$status" = 0 ]; then status=$code; fi
  done
  ranks=("${left[@]}")
  [ "$status" = 0 ] || rounds_since_failure=$((rounds_since_failure + 1))
  if [ "$rounds_since_failure" -gt 300 ] && [ ${#ranks[@]} -gt 0 ]; then
    echo "launch_local: ${#ranks[@]} ranks go on without the one that failed; stopping them" >&2
    kill -KILL "${ranks[@]}" 2>/dev/null || true
  fi
  sleep 0.2 || true
done
exit "$status"
