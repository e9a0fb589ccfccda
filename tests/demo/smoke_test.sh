#!/usr/bin/env bash
# The quickstart at smoke size: corpus, training, comparison with the bigram; then the same command once more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TRAIN_GPT_V2=${TGV2_BINARY:?run through ctest}
fail() { echo "FAILED: $*" >&2; exit 1; }

# From another folder: what the caller names lies there.
quickstart() { (root=$PWD; cd "$work"; "$root/scripts/quickstart.sh" --smoke --no-build --data data --run ./run); }

quickstart | tee "$work/first.txt"
for file in summary.json metrics.jsonl best_model.pth latest.pt DONE; do
  [ -s "$work/run/$file" ] || fail "no $file in the run directory"
done
python3 - "$work/run/summary.json" <<'PYTHON'
import json, sys
summary = json.load(open(sys.argv[1]))
wanted = {"bigram_mel_loss", "val_mel_loss", "text_usage_gap", "train_seconds", "steps", "parameters"}
assert wanted <= set(summary), sorted(wanted - set(summary))
assert summary["steps"] == 40, summary
assert summary["train_seconds"] > 0 and summary["parameters"] > 1_000_000, summary
# 128 codes of unequal frequency: the unigram lies below ln 128, the bigram far below the unigram.
assert 1.0 < summary["bigram_mel_loss"] < summary["unigram_mel_loss"] - 1.5 < 4.85 - 1.5, summary
# It starts at ln 8194 = 9.01; forty steps take it below what code frequencies alone can give.
assert summary["val_mel_loss"] < summary["unigram_mel_loss"] - 0.5, summary
assert abs(summary["text_usage_gap"]) < 1.0, summary
PYTHON

before=$(sha256sum < "$work/run/model_step40.pth")
quickstart > "$work/second.txt"
grep -q 'already there' "$work/second.txt" || fail "the corpus was made again"
[ "$before" = "$(sha256sum < "$work/run/model_step40.pth")" ] || fail "a finished run was trained again"
echo "demo.smoke passed"
