#!/usr/bin/env bash
# Every error code has a row in the table, is thrown by the sources, and is named in a test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

bad=0
complain() { echo "error_codes: $*" >&2; bad=1; }
code='[A-Z]{2,3}[0-9]{3}'
# codes PATTERN: the codes within what the pattern matches on stdin, once each; lines of comments say nothing.
codes() { { grep -vE '^ *(//|#)' || true; } | { grep -oE "$1" || true; } | { grep -oE "$code" || true; } | sort -u; }
# without A B: the codes of A that B lacks.
without() { comm -23 <(echo "$1") <(echo "$2"); }

table=$(codes "^ *\{\"$code\", k" <src/core/error_codes.cc)
# A code may be chosen, or kept in a variable, before it is thrown; to compare with one throws nothing.
thrown=$(find include src \( -name '*.h' -o -name '*.cc' -o -name '*.cu' \) ! -name error_codes.cc -exec cat {} + |
  sed -E "s/[=!]= *\"$code\"//g" | codes "\"$code\"")
# `explain` is tested with codes that its test does not provoke.
named=$(find tests \( -name '*.cc' -o -name '*.h' -o -name '*.sh' -o -name '*.py' \) ! -name explain_command_test.cc \
  -exec cat {} + | codes "\<$code\>")

[ "$(wc -w <<<"$table")" -gt 60 ] || complain "src/core/error_codes.cc: the table was not understood"
for one in $(without "$thrown" "$table"); do complain "$one is thrown, but has no row in src/core/error_codes.cc"; done
for one in $(without "$table" "$thrown"); do complain "$one is in the table, but thrown nowhere"; done
for one in $(without "$table" "$named"); do complain "$one is named in no test"; done
[ "$bad" = 0 ] && echo "$(wc -w <<<"$table") codes"
exit "$bad"
