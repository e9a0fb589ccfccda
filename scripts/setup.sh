#!/usr/bin/env bash
# Installs what the build needs: system packages and LibTorch. Idempotent; everything else calls it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'USAGE'
usage: scripts/setup.sh [--cpu | --gpu] [--check]

Installs the system packages that are missing (Debian or Ubuntu, needs root) and, unless LIBTORCH_ROOT names one,
LibTorch 2.11.0 into a per-user cache (TRAIN_GPT_V2_CACHE, default ~/.cache/train_gpt_v2), where every clone finds it.

  --cpu    the CPU set: 0.5 GB to download. The default where there is neither a GPU nor nvcc
  --gpu    the GPU set: 2.5 GB to download. The default otherwise
  --check  install nothing; exit 75 if something is missing

Exit status: 0 ready, 64 wrong use, 75 something is missing and cannot be installed now.
USAGE
}

set_kind=""
check=no
for argument in "$@"; do
  case "$argument" in
    --cpu) set_kind=cpu ;;
    --gpu) set_kind=gpu ;;
    --check) check=yes ;;
    -h|--help) usage; exit 0 ;;
    *) usage >&2; exit 64 ;;
  esac
done
say() { echo "setup: $*"; }

# --- system packages --------------------------------------------------------------------------------------------------
mapfile -t wanted < <(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' -e 's/[[:space:]]*$//' third_party/apt-packages.txt)
missing=()
if command -v dpkg-query >/dev/null; then
  for package in "${wanted[@]}"; do
    dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
else
  say "no dpkg here: please see to it yourself that these are installed: ${wanted[*]}"
fi
if [ ${#missing[@]} -gt 0 ]; then
  line="apt-get install -y --no-install-recommends ${missing[*]}"
  if [ "$check" = yes ] || [ "$(id -u)" != 0 ]; then
    say "system packages are missing. As root:  apt-get update && $line" >&2
    exit 75
  fi
  say "installing system packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  # Lists that are older than the archive make the install fail; only then are they worth fetching.
  # shellcheck disable=SC2086
  if ! { $line >"$log" 2>&1 </dev/null || { apt-get update >"$log" 2>&1 </dev/null && $line >"$log" 2>&1 </dev/null; }; }; then
    tail -n 20 "$log" >&2
    say "apt-get failed (above). Try again later:  apt-get update && $line" >&2
    exit 75
  fi
else
  say "system packages: all there"
fi

# --- LibTorch ---------------------------------------------------------------------------------------------------------
if [ -n "${LIBTORCH_ROOT:-}" ]; then
  if [ ! -e "$LIBTORCH_ROOT/lib/libtorch_cpu.so" ]; then
    say "LIBTORCH_ROOT=$LIBTORCH_ROOT holds no lib/libtorch_cpu.so" >&2
    exit 75
  fi
  say "LibTorch: $LIBTORCH_ROOT (LIBTORCH_ROOT)"
  exit 0
fi
# Without HOME (cron, systemd) bash takes ~ from the user's passwd entry.
cache=${TRAIN_GPT_V2_CACHE:-${XDG_CACHE_HOME:-${HOME-~}/.cache}/train_gpt_v2}
if [ -z "$set_kind" ]; then
  set_kind=cpu
  if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ] || [ -e /dev/nvidiactl ]; then set_kind=gpu; fi
fi
target=$cache/libtorch-2.11.0-$set_kind
if [ -e "$target/.complete" ]; then
  say "LibTorch: $target"
  exit 0
fi
if [ "$check" = yes ]; then
  say "LibTorch is missing: run scripts/setup.sh" >&2
  exit 75
fi
case "$set_kind" in
  cpu) size="0.5 GB to download, 1.2 GB on disk"; need_mb=3000 ;;
  gpu) size="2.5 GB to download, 4 GB on disk"; need_mb=9000 ;;
esac
mkdir -p "$cache"
exec 9>"$cache/.setup.lock"
flock 9 # two clones set up at once: the second finds the first one's work
if [ ! -e "$target/.complete" ]; then
  free_mb=$(df -Pm "$cache" | awk 'NR==2 {print $4}')
  if [ "$free_mb" -lt "$need_mb" ]; then
    say "LibTorch needs about $need_mb MB in $cache, $free_mb MB are free. Set TRAIN_GPT_V2_CACHE to another disk." >&2
    exit 75
  fi
  say "fetching LibTorch 2.11.0 from PyPI, $set_kind set ($size), into $target"
  rm -rf "$target.partial"
  # The wheel is fetched for its libraries; which Python runs pip does not matter, so its tags are spelled out.
  if ! python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --require-hashes \
      --only-binary=:all: --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
      --platform manylinux_2_25_x86_64 --platform manylinux_2_18_x86_64 --platform manylinux_2_17_x86_64 \
      --platform manylinux_2_12_x86_64 --platform manylinux_2_5_x86_64 --platform manylinux2014_x86_64 \
      --platform manylinux2010_x86_64 --platform manylinux1_x86_64 \
      --python-version 3.11 --implementation cp --abi cp311 --abi none \
      --target "$target.partial" -r "third_party/libtorch-$set_kind.lock" </dev/null; then
    rm -rf "$target.partial"
    say "the download failed; run scripts/setup.sh again" >&2
    exit 75
  fi
  rm -rf "$target" "$target.partial/bin" "$target.partial/functorch"
  mv "$target.partial" "$target"
  touch "$target/.complete"
fi
say "LibTorch: $target"
