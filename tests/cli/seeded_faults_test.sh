#!/usr/bin/env bash
# A user who has never seen the program gets from a broken configuration and a corpus with seeded faults to a good run by
# reading what the program prints, and nothing else. The faults are listed in FAULTS before anything is made.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
# shellcheck disable=SC2154
check "the whole way" python3 "$root/tests/support/seeded_faults.py" "${TGV2_BINARY:?ctest sets it}" "$root/tests/data/fixtures" "$work"
finish
