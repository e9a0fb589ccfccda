#!/usr/bin/env bash
# Set-up, build, tests, sanitizers: all there is to run before a commit. --long adds the slow sets.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=release
build_only=no
for argument in "$@"; do
  case "$argument" in
    --long) preset=long ;;
    --build-only) build_only=yes ;;
    -h|--help)
      echo "usage: scripts/test.sh [--long] [--build-only]"
      echo "Sets up, builds build/release and runs its tests, then those below torch under ASan, UBSan and TSan;"
      echo "--long adds the slow tests."
      exit 0 ;;
    *) echo "usage: scripts/test.sh [--long] [--build-only]" >&2; exit 64 ;;
  esac
done

export HOME=${HOME-~}  # cron and systemd leave it out; CMake looks there for what setup.sh fetched
scripts/setup.sh
cmake --preset release
cmake --build --preset release
[ "$build_only" = no ] || exit 0
ctest --preset "$preset" -j "$(nproc)"
scripts/reliability.sh --short asan tsan
