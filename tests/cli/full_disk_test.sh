#!/usr/bin/env bash
# A disk that really is full (a small tmpfs): training goes on with the old checkpoint, then leaves with 74; with more
# room the same command goes on, and the weights are those of an undisturbed run.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
set -e
if [ "${1:-}" != inside ]; then
  unshare -rm true 2>/dev/null || { echo "skipped: no mount namespaces here"; exit 0; }
  exec unshare -rm bash "${BASH_SOURCE[0]}" inside
fi
program=${TGV2_BINARY:?ctest sets it}
fail() { echo "FAILED: $*"; cat "$work/err"; exit 1; }
write_config "$work/run.json" '{"train": {"max_steps": 12, "log_interval": 1}, "optimizer": {"warmup_steps": 2},
  "validation": {"interval": 0}, "checkpoint": {"interval": 2}}'
"$program" --config "$work/run.json" --output-dir "$work/whole" --device cpu -q

mkdir "$work/small"
mount -t tmpfs -o size=14m tmpfs "$work/small" || { echo "skipped: tmpfs cannot be mounted"; exit 0; }
status=0
"$program" --config "$work/run.json" --output-dir "$work/small/run" --device cpu 2>"$work/err" || status=$?
[ "$status" = 74 ] || fail "status $status, wanted 74"
grep -q 'was not saved: .*Training goes on' "$work/err" || fail "it did not say that a checkpoint was not saved"
grep -q 'error\[IO002\]' "$work/err" || fail "no IO002"
[ "$(find "$work/small/run" -name 'model_step*.pth' | wc -l)" = 2 ] || fail "wanted the two checkpoints that fitted"
! compgen -G "$work/small/run/*.tmp.*" >/dev/null || fail "temporary files were left"
"$program" inspect --verify "$work/small/run/latest.pt" >/dev/null || fail "latest.pt is not sound"

mount -o remount,size=64m "$work/small"
"$program" --config "$work/run.json" --output-dir "$work/small/run" --device cpu -q
"$program" inspect --json "$work/whole/latest.pt" "$work/small/run/latest.pt" | grep -q '"model\.' && fail "other weights"
umount "$work/small"
echo "a full disk cost nothing"
