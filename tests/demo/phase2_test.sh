#!/usr/bin/env bash
# The cycle of phase 2 on the demo corpus at smoke size, with a shipped configuration: first voices old, second new.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TRAIN_GPT_V2=${TGV2_BINARY:?run through ctest}

status=0
scripts/phase2.sh --config configs/phase2_adalora.json --data demo --smoke --output "$work/out" --device cpu --min-top1 0 \
  --max-mel-loss 9 --max-forgetting 0.5 --max-overhead 2 --scales 0.5 | tee "$work/table" || status=$?
[ "$status" = 0 ] || { echo "FAILED: status $status"; exit 1; }
python3 - "$work/out/phase2.json" <<'PYTHON'
import json, sys
result = json.load(open(sys.argv[1]))
assert result["data"] == "demo" and result["method"] == "dora_adalora"
assert list(result["runs"]) == ["none", "ewc", "replay", "none, merge scale 0.5"], list(result["runs"])
base = result["base"]
# Sixteen steps of the base model leave it below the ln 8194 of no knowledge; twelve more help the new voices.
assert base["new"]["mel_loss"] < 9.01 and result["runs"]["none"]["new"]["mel_loss"] < base["new"]["mel_loss"]
adapters = result["adapters"]
# Width 128: ranks 32, 32, 16, 16 in four blocks, pruned to two thirds.
assert adapters["of"] == 12 * 128 * 128 and adapters["ranks"] == 256, adapters
assert result["merged"]["proof"]["loss_difference"] < 1e-5
PYTHON
echo "phase2.demo passed"
