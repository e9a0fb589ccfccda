#!/usr/bin/env bash
# scripts/bench.sh: its options, and how it judges another trainer (with stand-ins for all programs).
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"

fails_with 64 "unknown option" "$root/scripts/bench.sh" --fast
fails_with 64 "a missing value" "$root/scripts/bench.sh" --against
fails_with 64 "no threads" "$root/scripts/bench.sh" --threads 0
fails_with 64 "another clock" "$root/scripts/bench.sh" --clock sun
fails_with 64 "a comparison with nobody" "$root/scripts/bench.sh" --only-against
check "help" "$root/scripts/bench.sh" --help >/dev/null

# Our side: losses that fall by 0.02 a step, half a second a step; 100 + 20 scored tokens.
cat >"$work/ours" <<'PYTHON'
#!/usr/bin/env python3
import json, sys
if sys.argv[1] == "--version":
    sys.exit(print("train_gpt_v2 test"))
config = json.load(open(sys.argv[sys.argv.index("--config") + 1]))
run = sys.argv[sys.argv.index("--output-dir") + 1]
import os
ranks = int(os.environ.get("WORLD_SIZE", 1))
if os.environ.get("RANK", "0") != "0":
    sys.exit()
os.makedirs(run)
off = float(os.environ.get("RANKS_ERROR", 0)) if ranks > 1 else 0
fast = config["train"]["precision"] == "bf16"
with open(run + "/metrics.jsonl", "w") as f:
    f.write('{"v":1,"type":"event","step":0,"event":"start"}\n')
    for step in range(1, config["train"]["max_steps"] + 1):
        f.write(json.dumps({"v": 1, "type": "train", "step": step, "loss": 8 * (1 + (off if step == 5 else 0)), "text_loss": 9 - 0.02 * step, "mel_loss": 8 - 0.02 * step, "grad_norm": 2.0,
                            "text_tokens": 20, "mel_tokens": 100, "step_seconds": 0.25 if fast else 0.5}).replace('": ', '":') + "\n")
PYTHON
cat >"$work/bench_train" <<'PYTHON'
#!/usr/bin/env python3
import sys
folder = sys.argv[sys.argv.index("--folder") + 1]
open(folder + "/model.json", "w").write("{}")
PYTHON
# The other side: the same losses unless told otherwise, two seconds a step.
cat >"$work/peer" <<'PYTHON'
#!/usr/bin/env python3
import argparse, json, sys
a = argparse.ArgumentParser()
for name in ("loss-error", "norm-error", "fall", "die"):
    a.add_argument("--" + name, type=float, default=0.02 if name == "fall" else 0)
for name in ("model", "manifest", "order", "metrics", "init", "threads", "grad-accumulation", "learning-rate", "warmup-steps", "total-steps",
             "weight-decay", "grad-clip", "dropout"):
    a.add_argument("--" + name, required=True)
a.add_argument("--steps", type=int, required=True)
o = a.parse_args()
assert (o.learning_rate, o.warmup_steps) == ("0.0002", "2"), o
with open(o.metrics, "w") as f:
    for step in range(1, o.steps + 1):
        if o.die and step > o.die:
            sys.exit("peer: out of memory")
        mel = (8 - o.fall * step) * (1 + (o.loss_error if step == 20 else 0))
        f.write(json.dumps({"step": step, "text_loss": 9 - 0.02 * step, "mel_loss": mel, "grad_norm": 2 * (1 + o.norm_error),
                            "text_tokens": 20, "mel_tokens": 100, "seconds": 2}) + "\n")
PYTHON
chmod +x "$work/ours" "$work/bench_train" "$work/peer"
compare() { # [OPTIONS OF THE PEER]
  status_of python3 "$root/tests/bench/bench.py" --program "$work/ours" --bench-train "$work/bench_train" --bench-kernels /bin/false \
    --only-against --quick --threads 1 --json "$work/bench.json" --against "$work/peer $*"
}
# shellcheck disable=SC2317  # called through check
result() { # EXPRESSION over `rows` (by name) and `report`
  python3 -c '
import json, sys
report = json.load(open(sys.argv[1]))
rows = {row["name"]: row for row in report["rows"]}
assert eval(sys.argv[2]), report' "$work/bench.json" "$1"
}
compare
check "the same losses: measured" test "$status" = 0
check "fp32 takes half a second against two" result 'abs(rows["ours fp32 against the peer, wall time"]["value"] - 4) < 1e-9'
check "bf16 a quarter" result 'abs(rows["ours bf16 against the peer, wall time"]["value"] - 8) < 1e-9'
check "tokens per second" result 'abs(rows["peer, wall time"]["value"] - 60) < 1e-9'
check "a table, too" says "ours fp32 against the peer, wall time"
compare --loss-error 9e-6 --norm-error 2e-5
check "within the tolerances" test "$status" = 0
compare --loss-error 2e-5
check "losses differ: status 1" test "$status" = 1
check "and no times" result '"peer, wall time" not in rows and "losses differ" in report["failed"][0]'
compare --norm-error 4e-5
check "norms differ: status 1" test "$status" = 1
compare --fall 0.001
check "losses that do not fall as ours" test "$status" = 1
compare --die 3
check "a peer that dies: status 1" test "$status" = 1
check "its last words are shown" says "out of memory"
ranks() { # RELATIVE ERROR OF TWO RANKS
  status_of env RANKS_ERROR="$1" python3 "$root/tests/bench/bench.py" --program "$work/ours" --bench-train "$work/bench_train" \
    --bench-kernels /bin/false --only-against --quick --threads 2 --ranks 2 --json "$work/bench.json"
}
ranks 5e-7
check "two ranks with the losses of one: $(cat "$work/out" "$work/err")" test "$status" = 0
check "their efficiency" result 'abs(rows["efficiency of 2 ranks (1 threads each)"]["value"] - 0.5) < 1e-9'
ranks 2e-6
check "two ranks with other losses: status 1, was $status" test "$status" = 1
check "and no times" result '"2 ranks" not in rows and "losses differ" in report["failed"][0]'
finish
