#!/usr/bin/env bash
# scripts/setup.sh and scripts/reliability.sh where the environment is not that of a terminal in the clone.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"

# All packages are there, whatever this machine has; nothing is built.
mkdir "$work/bin"
printf '#!/bin/sh\nprintf installed\n' >"$work/bin/dpkg-query"
printf '#!/bin/sh\n' >"$work/bin/cmake"
chmod +x "$work/bin/dpkg-query" "$work/bin/cmake"

# As from cron: the cache is that of the user's own home, which may hold LibTorch or not.
status_of env -u HOME -u XDG_CACHE_HOME -u TRAIN_GPT_V2_CACHE -u LIBTORCH_ROOT PATH="$work/bin:$PATH" "$root/scripts/setup.sh" --cpu --check
home=$(python3 -c 'import os, pwd; print(pwd.getpwuid(os.getuid()).pw_dir)' 2>/dev/null || echo /)
wanted="LibTorch is missing"
[ ! -e "$home/.cache/train_gpt_v2/libtorch-2.11.0-cpu/.complete" ] || wanted="LibTorch: $home/.cache/train_gpt_v2/libtorch-2.11.0-cpu"
check "without HOME ($status): $(cat "$work/out" "$work/err")" says "setup: $wanted"

# The test scripts that it would run only say which program they are given.
# shellcheck disable=SC2016
printf '#!/bin/sh\nprintf "FIGURE\\t%%s\\t1\\t0\\t0\\n" "$TGV2_BINARY"\n' >"$work/bin/bash"
chmod +x "$work/bin/bash"
# shellcheck disable=SC2317
from_work() { (cd "$work" && env PATH="$work/bin:$PATH" TRAIN_GPT_V2="$1" /bin/bash "$root/scripts/reliability.sh" --short kill); }
status_of from_work bin/program
check "a program named from here ($status): $(cat "$work/out" "$work/err")" grep -q "^$work/bin/program " "$work/out"
status_of from_work /some/program
check "one named in full: $(cat "$work/out")" grep -q "^/some/program " "$work/out"
finish
