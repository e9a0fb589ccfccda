#!/usr/bin/env bash
# Two and three processes over Gloo take the steps of one process with the same global batch, whatever is switched on
# and whoever starts them; a killed rank ends all, the run goes on with the same and with another number of ranks;
# signals are agreed; an error that one rank meets costs as little as it costs one rank alone.
# shellcheck source=tests/support/cli.sh
source "$(dirname "${BASH_SOURCE[0]}")/../support/cli.sh"
program=${TGV2_BINARY:?ctest sets it}
export TRAIN_GPT_V2=$program OMP_NUM_THREADS=1
launch=$root/scripts/launch_local.sh

# config NAME JSON...: a configuration over the fixtures, later objects merged into it section by section.
config() {
  python3 - "$root/tests/data/fixtures" "$work/$1.json" "${@:2}" <<'PYTHON'
import json, sys
fixtures, out, *more = sys.argv[1:]
model = json.load(open(fixtures + "/model/config.json"))["constructor"]
model.pop("use_accel")
model["dropout"] = 0
config = {"model": model, "init": {"from": fixtures + "/model/gpt.pth"},
          "data": {"train_manifests": [fixtures + "/data/train_pairs.jsonl::am"],
                   "val_manifests": [fixtures + "/data/val_pairs.jsonl::am"], "tokenizer": fixtures + "/tokenizer/extended.model"},
          "train": {"batch_size": 2, "grad_accumulation": 6, "max_steps": 20, "log_interval": 1, "num_threads": 1, "grad_clip": 0.5},
          "optimizer": {"learning_rate": 2e-4, "warmup_steps": 2},
          "ema": {"enabled": True, "decay": 0.9}, "validation": {"interval": 5, "by": ["language", "speaker"], "batch_size": 3},
          "early_stopping": {"enabled": True, "patience": 100},
          "checkpoint": {"interval": 5}, "sampling": {"interval": 0},
          "logging": {"progress": "off", "tensorboard": False}}
for text in more:
    for section, keys in json.loads(text).items():
        config.setdefault(section, {}).update(keys)
json.dump(config, open(out, "w"))
PYTHON
}

# same_run A B: every line of metrics and every tensor of the newest checkpoints agree (losses 1e-6, weights 1e-5).
same_run() {
  python3 - "$root/tests/support" "$work/$1" "$work/$2" <<'PYTHON'
import array, json, sys
support, a, b = sys.argv[1:]
sys.path.insert(0, support)
from torch_reader import Tensor, read_plain

def lines(run, kind):
    return [line for line in map(json.loads, open(run + "/metrics.jsonl")) if line["type"] == kind]

worst = 0.0
for kind, keys in (("train", ("loss", "text_loss", "mel_loss", "mel_top1")), ("validation", ("text_loss", "mel_loss", "mel_top1"))):
    one, two = lines(a, kind), lines(b, kind)
    assert len(one) == len(two) > 3, (kind, len(one), len(two))
    for x, y in zip(one, two):
        assert [x.get(k) for k in ("step", "epoch", "split", "weights", "text_tokens", "mel_tokens")] == \
               [y.get(k) for k in ("step", "epoch", "split", "weights", "text_tokens", "mel_tokens")], (x, y)
        for key in keys:
            if key == "mel_top1":  # counts: a tie may fall to the other side
                assert abs(x[key] - y[key]) <= 1.01 / x["mel_tokens"], (key, x, y)
                continue
            worst = max(worst, abs(x[key] - y[key]) / max(1.0, abs(x[key])))
            assert worst <= 1e-6, (key, x, y)
        if kind == "train":
            assert abs(x["grad_norm"] - y["grad_norm"]) <= 1e-5 * x["grad_norm"], (x, y)
assert lines(a, "train")[-1]["step"] == 20
prunes = [[line["step"], line["ranks"]] for line in lines(a, "event") if line["event"] == "prune"]
assert prunes == [[line["step"], line["ranks"]] for line in lines(b, "event") if line["event"] == "prune"], "pruned differently"

def floats(tensor):
    return array.array("f", tensor.data)

def compare(x, y, path):
    if isinstance(x, Tensor):
        assert x.shape == y.shape, (path, x.shape, y.shape)
        if x.dtype != "float32":
            return 0.0
        p, q = floats(x), floats(y)
        skip = range(0)
        if path.endswith("attn.c_attn.bias"):  # the key third has no gradient but rounding (architecture.md §10)
            skip = range(len(p) // 3, 2 * len(p) // 3)
        return max((abs(u - v) for i, (u, v) in enumerate(zip(p, q)) if i not in skip), default=0.0)
    if isinstance(x, dict):
        assert list(x) == list(y), (path, list(x), list(y))
        return max((compare(x[key], y[key], f"{path}.{key}") for key in x), default=0.0)
    return 0.0

one, two = read_plain(a + "/latest.pt"), read_plain(b + "/latest.pt")
for key in ("model", "base_model", "adapter", "ema_state"):
    assert (key in one) == (key in two), key
    if key in one:
        difference = compare(one[key], two[key], key)
        assert difference <= 1e-5, (key, difference)
assert (one["step"], one["epoch"], one["batch_idx"]) == (two["step"], two["epoch"], two["batch_idx"])
print(f"{a} = {b}: losses within {worst:.1e}")
PYTHON
}

run() { "$program" --config "$work/$1.json" --output-dir "$work/$2" --device cpu -q "${@:3}"; }
# For the background: the launcher is the process that $! names.
run_on_alone() { exec "$launch" -n "$1" -- train_gpt_v2 --config "$work/$2.json" --output-dir "$work/$3" --device cpu -q; }
run_on() { "$launch" -n "$1" -- train_gpt_v2 --config "$work/$2.json" --output-dir "$work/$3" --device cpu -q "${@:4}"; }

# --- the same steps, with everything of phase 1, and with adapters, rank allocation and EWC
config phase1
check "one rank" run phase1 one
check "two ranks" run_on 2 phase1 two
check "two ranks take the same steps" same_run one two
fails_with 78 "five micro-batches on two ranks" run_on 2 phase1 uneven --set train.grad_accumulation=5
check "the code and the numbers" says "error[NET004]: train.grad_accumulation (5) is no multiple of the 2 ranks"
check "what it counts" says "it counts micro-batches over all ranks"
check "the nearest numbers are named" says "set it to 4 or 6"
fails_with 78 "an effective batch that two ranks cannot share" run_on 2 phase1 uneven \
  --set train.batch_size=auto --set train.grad_accumulation=1 --set train.effective_batch=7
check "the code and the numbers" says "error[NET004]: train.effective_batch (7) is no multiple of the 2 ranks"
check "what would do" says "fix: choose a multiple"
check "three ranks, moments sharded" run_on 3 phase1 three --set distributed.shard_optimizer=true
check "three ranks take the same steps" same_run one three
check "two ranks of modules" run_on 2 phase1 modules --set train.engine=modules
check "modules take the same steps" same_run one modules

# --- started by Slurm: a stand-in for srun sets what srun sets (on one node, and on two of which this machine plays both)
cat >"$work/srun" <<'SRUN'
#!/usr/bin/env bash
# srun NODES COMMAND...: two tasks on one node, or one on each of two.
nodes=$1; shift
while job=$RANDOM; (exec 3<>"/dev/tcp/127.0.0.1/$((20000 + job))") 2>/dev/null; do :; done
names=localhost; [ "$nodes" = 1 ] || names=localhost,node2
export SLURM_JOB_ID=$job SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=$nodes
export SLURM_STEP_NODELIST=$names SLURM_JOB_NODELIST=other,$names
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$((nodes == 1 ? task : 0)) "$@" &
  tasks[task]=$!
done
worst=0
for task in 0 1; do
  code=0; wait "${tasks[task]}" || code=$?
  [ "$code" -le "$worst" ] || worst=$code
done
exit "$worst"
SRUN
chmod +x "$work/srun"
by_slurm() { env -u RANK -u WORLD_SIZE -u MASTER_ADDR -u MASTER_PORT GLOO_SOCKET_IFNAME=lo "$work/srun" "$1" "$program" --config "$work/$2.json" --output-dir "$work/$3" --device cpu -q "${@:4}"; }
check "srun, two tasks on a node" by_slurm 1 phase1 slurm
check "they take the same steps" same_run one slurm
check "srun, a task on each of two nodes" by_slurm 2 phase1 slurm2
check "these too" same_run one slurm2
fails_with 78 "srun, and an accumulation that the tasks do not divide" by_slurm 1 phase1 odd_slurm --set train.grad_accumulation=3

manifest=$root/tests/data/fixtures/data/val_pairs.jsonl
check "fisher" "$program" fisher --config "$work/phase1.json" --checkpoint "$root/tests/data/fixtures/model/gpt.pth" \
  --manifest "$manifest::am" --output "$work/fisher.safetensors" --device cpu -q
config phase2 '{"peft": {"method": "dora_adalora", "rank": 4, "pruning_steps": [8, 14], "target_budget": 20},
  "trainable": {"train": ["wte", "text_head", "mel_head"], "text_rows": "all"},
  "ewc": {"enabled": true, "fisher": "'"$work"'/fisher.safetensors", "lambda": 100}}'
check "phase 2, one rank" run phase2 one2
check "phase 2, three ranks" run_on 3 phase2 three2
check "three ranks take the same steps in phase 2" same_run one2 three2

# --- deaths, resumes, signals
# at_step RUN N: waits until its metrics show step N.
at_step() {
  for _ in $(seq 300); do
    grep -qs "\"step\":$2," "$work/$1/metrics.jsonl" && return
    sleep 0.05
  done
  return 1
}
config deaths '{"train": {"max_steps": 60, "epochs": null}, "checkpoint": {"interval": 4}}'
check "two ranks, 60 steps" run_on 2 deaths whole
run_on_alone 2 deaths parts >"$work/out" 2>"$work/err" &
launcher=$!
check "it is under way" at_step parts 13
pkill -KILL -n -P "$launcher" -f -- --output-dir || true
status=0; wait "$launcher" || status=$?
check "a killed rank ends all, was $status" test "$status" != 0
check "no rank is left" test -z "$(pgrep -f "$work/parts" || true)"
check "a checkpoint is there" test -e "$work/parts/latest.pt"
check "two ranks go on" run_on 2 deaths parts
"$program" inspect --json "$work/whole/latest.pt" "$work/parts/latest.pt" >"$work/difference.json"
check "a killed and continued run ends with the same bits" python3 - "$work/difference.json" <<'PYTHON'
import sys
text = open(sys.argv[1]).read()
assert not [name for name in ("model.", "optimizer.", "ema_state.") if '"' + name in text], text[:2000]
PYTHON
check "two ranks stop at step 10" run_on 2 phase1 other --max-steps 10
check "three ranks go on with the run of two" run_on 3 phase1 other
check "it took the same steps" same_run one other

config long '{"train": {"max_steps": 100000, "epochs": null}, "validation": {"interval": 0},
  "early_stopping": {"enabled": false}, "checkpoint": {"interval": 0}}'
run_on_alone 2 long signals >"$work/out" 2>"$work/err" &
launcher=$!
check "it is under way" at_step signals 3
kill -TERM "$launcher"
status=0; wait "$launcher" || status=$?
check "SIGTERM is agreed: status 143, was $status: $(tail -n 3 "$work/err")" test "$status" = 143
check "it saved" test -e "$work/signals/latest.pt"
# Ctrl-C in a terminal goes to the launcher's whole process group. A rank that heard of it twice would not save.
status_of python3 - "$launch" "$work/long.json" "$work/interrupted" <<'PYTHON'
import os, signal, subprocess, sys, time
launch, config, run = sys.argv[1:]
signal.signal(signal.SIGINT, signal.SIG_DFL)  # bash cannot take back that it was ignored
command = [launch, "-n", "2", "--", "train_gpt_v2", "--config", config, "--output-dir", run, "--device", "cpu", "-q"]
launcher = subprocess.Popen(command, start_new_session=True)
metrics = run + "/metrics.jsonl"
for _ in range(300):
    if os.path.exists(metrics) and '"step":3,' in open(metrics).read():
        break
    time.sleep(0.05)
os.killpg(launcher.pid, signal.SIGINT)
sys.exit(launcher.wait())
PYTHON
check "Ctrl-C is agreed: status 130, was $status: $(tail -n 3 "$work/err")" test "$status" = 130
check "it saved" test -e "$work/interrupted/latest.pt"

# --- errors that one rank meets
cp -r "$root/tests/data/fixtures/data" "$work/data"
# without_codes MANIFEST N: the manifest in which the codes of the N-th pair cannot be found, as data/broken_N.jsonl.
without_codes() {
  python3 - "$work/data" "$1" "$2" <<'PYTHON'
import json, sys
folder, manifest, victim = sys.argv[1], sys.argv[2], int(sys.argv[3])
pairs = [json.loads(line) for line in open(f"{folder}/{manifest}")]
pairs[victim - 1]["target_codes_path"] = "codes/missing.npy"
open(f"{folder}/broken_{victim}.jsonl", "w").writelines(json.dumps(pair) + "\n" for pair in pairs)
PYTHON
}
# same_state A B STEP: the newest checkpoints stand at that step and place, and hold the same weights to 1e-5.
same_state() {
  python3 - "$root/tests/support" "$work/$1" "$work/$2" "$3" <<'PYTHON'
import array, sys
support, a, b, step = sys.argv[1:]
sys.path.insert(0, support)
from torch_reader import read_plain
one, two = read_plain(a + "/latest.pt"), read_plain(b + "/latest.pt")
assert one["step"] == two["step"] == int(step), (one["step"], two["step"])
assert (one["epoch"], one["batch_idx"]) == (two["epoch"], two["batch_idx"])
for key, tensor in one["model"].items():
    if tensor.dtype == "float32" and not key.endswith("attn.c_attn.bias"):
        p, q = array.array("f", tensor.data), array.array("f", two["model"][key].data)
        assert max(abs(u - v) for u, v in zip(p, q)) <= 1e-5, key
PYTHON
}
config errors '{"sampler": {"mode": "sequential"}, "checkpoint": {"interval": 1000}, "validation": {"interval": 0},
  "early_stopping": {"enabled": false}}'
# same_error STEP NAME SETTINGS...: one rank and two end with the same status, message and newest checkpoint.
same_error() {
  local step=$1 name=$2; shift 2
  status_of run errors "alone_$name" "$@"
  local alone=$status message
  message=$(grep -m 1 '^error\[' "$work/err")
  check "$name: one rank ends with an error" test "$alone" -gt 0 -a -n "$message"
  fails_with "$alone" "$name: so do two ranks" run_on 2 errors "both_$name" "$@"
  cat "$work/err" >>"$work/all_errors"
  check "$name: with the same message" says "$message"
  check "$name: both have saved step $step" same_state "alone_$name" "both_$name" "$step"
}
for victim in 20 24; do  # of the second window
  without_codes train_pairs.jsonl "$victim"
  same_error 1 "train_$victim" --set "data.train_manifests=[\"$work/data/broken_$victim.jsonl\"]"
done
for victim in 1 4; do
  without_codes val_pairs.jsonl "$victim"
  same_error 3 "val_$victim" --set validation.interval=3 --set "data.val_manifests=[\"$work/data/broken_$victim.jsonl\"]"
done
for rank in 0 1; do
  check "an error of rank $rank was among them" grep -q "on rank $rank" "$work/all_errors"
done

# One start in a hundred met a port of an outgoing connection, which Linux takes from 32768 on.
for _ in $(seq 20); do env -u MASTER_PORT "$launch" -n 1 -- bash -c 'echo "$MASTER_PORT"' & done >"$work/ports"
wait
check "20 starts" test "$(wc -l <"$work/ports")" = 20
check "their ports are none of outgoing connections: $(tr '\n' ' ' <"$work/ports")" \
  awk '$1 < 20000 || $1 > 31999 {exit 1}' "$work/ports"

# shellcheck disable=SC2016
fails_with 0 "08 ranks are eight" "$launch" -n 08 -- bash -c 'echo "rank $RANK of $WORLD_SIZE"'
check "all were started" test "$(sort -u "$work/out" | grep -c 'of 8$')" = 8
for count in 0 00 x ""; do fails_with 64 "no ranks: '$count'" "$launch" -n "$count" -- true; done

fails_with 78 "accumulation that the ranks do not divide" run_on 2 phase1 odd --set train.grad_accumulation=3
check "it names what would do" says "2 or 4"
printf '{"broken\n' >"$work/broken.jsonl"
fails_with 65 "bad data" run_on 2 phase1 bad --set "data.train_manifests=[\"$work/broken.jsonl\"]"
finish
