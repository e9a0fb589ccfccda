#!/usr/bin/env python3
"""What scripts/bench.sh does: runs the measuring programs, compares with another trainer, prints a table, writes JSON.

Standard library only. The other trainer's command is completed with
  --model FILE --manifest FILE --order FILE --metrics FILE --init FILE --threads N --steps N --grad-accumulation 1
  --learning-rate X --warmup-steps N --total-steps N --weight-decay X --grad-clip X --dropout P
and must write one JSON object per step to --metrics: {"step","text_loss","mel_loss","grad_norm","text_tokens",
"mel_tokens","seconds"}; "grad_norm_fp64", where it is there, is compared instead of "grad_norm" (torch's fp32 sum is
several 1e-5 low on large tables). Losses are compared before times; where they differ no time is reported.
"""
import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

LOSS_TOLERANCE, NORM_TOLERANCE, RANKS_TOLERANCE, LEAST_FALL = 1e-5, 3e-5, 1e-6, 0.2
LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "scripts", "launch_local.sh")
TICKS = os.sysconf("SC_CLK_TCK")


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Failed(Exception):
    """A measurement that could not be made; the message says why."""


def run_program(command, what, log):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log.write(done.stderr)
    if done.returncode:
        raise Failed(f"{what} ended with status {done.returncode}: {done.stderr.strip()[-600:]}")
    return done.stdout


def json_lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def processor_seconds(pid):
    """User and system time of a process and its threads so far; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    except OSError:
        return None


def other_load():
    """(busy ticks of the whole machine, stolen ticks) since boot."""
    with open("/proc/stat") as f:
        n = [int(x) for x in f.readline().split()[1:]]
    return sum(n) - n[3] - n[4], n[7]


def watch_lines(path, pid, is_step, stop, marks):
    """Notes the processor time of the process whenever a line of `path` for another step appears."""
    seen, position = 0, 0
    while True:
        ended = stop.is_set()
        try:
            with open(path, encoding="utf-8") as f:
                f.seek(position)
                for line in iter(f.readline, ""):
                    if not line.endswith("\n"):
                        break
                    position += len(line.encode())
                    if is_step(line):
                        seen += 1
                        marks.append(processor_seconds(pid))
        except OSError:
            pass
        if ended:
            return
        time.sleep(0.01)


def run_trainer(command, metrics, is_step, what, log):
    """Steps of one run: the lines of its metrics, each with the processor seconds it took where that is known."""
    marks, stop = [], threading.Event()
    with open(log.name + ".run", "w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        watcher = threading.Thread(target=watch_lines, args=(metrics, process.pid, is_step, stop, marks))
        watcher.start()
        status = process.wait()
        stop.set()
        watcher.join()
        output.seek(0)
        said = output.read()
    log.write(said)
    if status:
        raise Failed(f"{what} ended with status {status}: {said.strip()[-600:]}")
    with open(metrics, encoding="utf-8") as f:
        steps = [json.loads(line) for line in f if is_step(line)]
    for i, step in enumerate(steps):
        if 0 < i < len(marks) and marks[i] is not None and marks[i - 1] is not None:
            step["processor_seconds"] = marks[i] - marks[i - 1]
    return steps


class Comparison:
    def __init__(self, options, program, folder, log):
        self.options, self.program, self.folder, self.log = options, program, folder, log
        self.runs = 0
        self.rows, self.problems = [], []

    def corpus(self, dim, layers):
        folder = os.path.join(self.folder, f"corpus_{dim}")
        if not os.path.isdir(folder):
            os.makedirs(folder)
            run_program([self.options.bench_train, "corpus", "--folder", folder, "--dim", str(dim), "--layers", str(layers),
                         "--batch", str(self.options.batch), "--pairs", str(100 * self.options.batch)], "bench_train corpus", self.log)
        return folder

    def ours(self, corpus, order, steps, dropout, layout, precision, accumulation=1, ranks=1):
        self.runs += 1
        run = os.path.join(self.folder, f"run_{self.runs}")
        with open(os.path.join(corpus, "model.json")) as f:
            model = json.load(f)
        o = self.options
        threads = o.threads if accumulation == 1 else max(1, o.threads // o.ranks)  # as many for the one rank as for each
        config = {"model": {**model, "dropout": dropout}, "init": {"from": os.path.join(corpus, "init.pth")},
                  "data": {"train_manifests": [os.path.join(corpus, "manifest.jsonl")], "order_file": os.path.join(corpus, order),
                           "num_workers": 1},
                  "train": {"batch_size": o.batch, "max_steps": steps, "epochs": None, "layout": layout, "precision": precision,
                            "num_threads": threads, "grad_accumulation": accumulation, "log_interval": 1,
                            "loss_normalization": "micro_batch"},
                  "optimizer": {"learning_rate": o.learning_rate, "warmup_steps": o.warmup_steps, "schedule": "hf_cosine",
                                "total_steps": o.total_steps, "weight_decay": 0.01},
                  "validation": {"interval": 0}, "checkpoint": {"interval": 0},
                  "logging": {"progress": "off", "tensorboard": False}}
        path = run + ".json"
        with open(path, "w") as f:
            json.dump(config, f)
        launcher = [LAUNCHER, "-n", str(ranks), "--"] if ranks > 1 else []
        steps = run_trainer(launcher + [self.program, "train", "--config", path, "--output-dir", run, "--device", o.device],
                            os.path.join(run, "metrics.jsonl"), lambda line: '"type":"train"' in line, f"train_gpt_v2 ({precision})", self.log)
        for step in steps:
            step["seconds"] = step["step_seconds"]
        shutil.rmtree(run)
        return steps

    def theirs(self, command, corpus, order, steps, dropout):
        self.runs += 1
        metrics = os.path.join(self.folder, f"peer_{self.runs}.jsonl")
        o = self.options
        words = shlex.split(command) + [
            "--model", os.path.join(corpus, "model.json"), "--manifest", os.path.join(corpus, "manifest.jsonl"),
            "--order", os.path.join(corpus, order), "--metrics", metrics, "--init", os.path.join(corpus, "init.pth"),
            "--threads", str(o.threads), "--steps", str(steps), "--grad-accumulation", "1", "--learning-rate", str(o.learning_rate),
            "--warmup-steps", str(o.warmup_steps), "--total-steps", str(o.total_steps), "--weight-decay", "0.01", "--grad-clip", "1.0",
            "--dropout", str(dropout)]
        return run_trainer(words, metrics, lambda line: line.startswith("{"), command, self.log)

    def compare_losses(self, command, what, corpus, order, layout):
        steps = self.options.parity_steps
        ours = self.ours(corpus, order, steps, 0.0, layout, "fp32")
        theirs = self.theirs(command, corpus, order, steps, 0.0)
        if len(ours) < steps or len(theirs) < steps:
            raise Failed(f"{what}: {len(ours)} and {len(theirs)} steps instead of {steps}")
        for step in theirs:
            step["grad_norm"] = step.get("grad_norm_fp64", step["grad_norm"])
        worst = {key: max(abs(a[key] - b[key]) / abs(b[key]) for a, b in zip(ours, theirs)) for key in ("text_loss", "mel_loss", "grad_norm")}
        fall = min(run[0]["mel_loss"] - run[-1]["mel_loss"] for run in (ours, theirs))
        good = worst["text_loss"] <= LOSS_TOLERANCE and worst["mel_loss"] <= LOSS_TOLERANCE and worst["grad_norm"] <= NORM_TOLERANCE
        self.rows.append({"group": "losses", "name": what, "peer": command, "steps": steps, "value": max(worst["text_loss"], worst["mel_loss"]),
                          "unit": "largest relative difference", "limit": LOSS_TOLERANCE, "grad_norm": worst["grad_norm"],
                          "grad_norm_limit": NORM_TOLERANCE, "mel_loss_fell_by": fall})
        if not good:
            self.problems.append(f"{what}: the losses differ: {worst}")
        elif fall < LEAST_FALL:
            self.problems.append(f"{what}: the loss fell by {fall:.3f} only, less than {LEAST_FALL}: nothing was compared that learns")
        return good and fall >= LEAST_FALL

    def rate(self, steps, key):
        """Scored tokens per second over the steps behind the warm-up; None where the steps are too short for this clock."""
        counted = [s for s in steps[self.options.untimed_steps:] if key in s]
        seconds = sum(s[key] for s in counted)
        return sum(s["text_tokens"] + s["mel_tokens"] for s in counted) / seconds if seconds > 0 else None

    def compare_times(self, command, corpus):
        o = self.options
        runs = {"ours fp32": [], "ours bf16": [], "peer": []}
        busy_before, stolen_before = other_load()
        own_before, begin = sum(os.times()[:4]), time.monotonic()
        for pair in range(o.pairs):
            say(f"pair {pair + 1} of {o.pairs}")
            for name in runs:
                if name == "peer":
                    steps = self.theirs(command, corpus, "order.jsonl", o.timed_steps + o.untimed_steps, 0.1)
                else:
                    steps = self.ours(corpus, "order.jsonl", o.timed_steps + o.untimed_steps, 0.1, "packed", name.split()[1])
                runs[name].append(steps)
        busy, stolen = other_load()
        machine = (time.monotonic() - begin) * TICKS * (os.cpu_count() or 1)
        others = max(0.0, (busy - busy_before) - (sum(os.times()[:4]) - own_before) * TICKS) / machine
        stolen = (stolen - stolen_before) / machine
        self.rows.append({"group": "against", "name": "machine busy with others", "peer": command, "value": others, "unit": "share", "limit": 0.05})
        self.rows.append({"group": "against", "name": "time stolen by the host", "peer": command, "value": stolen, "unit": "share", "limit": 0.01})
        for key, clock in (("seconds", "wall"), ("processor_seconds", "processor")):
            rates = {name: [self.rate(steps, key) for steps in all_steps] for name, all_steps in runs.items()}
            if any(rate is None for values in rates.values() for rate in values):
                continue
            for name, values in rates.items():
                self.rows.append({"group": "against", "name": f"{name}, {clock} time", "peer": command, "value": statistics.median(values),
                                  "unit": "tokens/s", "least": min(values), "most": max(values)})
            for name in ("ours fp32", "ours bf16"):
                ratios = [a / b for a, b in zip(rates[name], rates["peer"])]
                self.rows.append({"group": "against", "name": f"{name} against the peer, {clock} time", "peer": command,
                                  "value": statistics.median(ratios), "unit": "times", "least": min(ratios), "most": max(ratios),
                                  "pairs": len(ratios)})

    def scale(self):
        """The same windows on one rank and on several, run by run in turn; losses before times."""
        o, corpus = self.options, self.corpus(self.options.dim, self.options.layers)
        steps, name = o.timed_steps + o.untimed_steps, f"{o.ranks} ranks"
        rates = {1: [], o.ranks: []}
        worst = 0.0
        for pair in range(o.pairs):
            say(f"ranks, pair {pair + 1} of {o.pairs}")
            runs = {n: self.ours(corpus, "order.jsonl", steps, 0.1, "packed", "fp32", o.ranks, n) for n in rates}
            if any(len(run) < steps for run in runs.values()):
                raise Failed(f"{name}: {len(runs[1])} and {len(runs[o.ranks])} steps instead of {steps}")
            worst = max([worst] + [abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(runs[1], runs[o.ranks])])
            for n in rates:
                rates[n].append(self.rate(runs[n], "seconds"))
        self.rows.append({"group": "ranks", "name": f"{name} against one: loss", "value": worst, "unit": "largest relative difference",
                          "limit": RANKS_TOLERANCE})
        if worst > RANKS_TOLERANCE:
            self.problems.append(f"{name}: the losses differ from those of one by {worst:.2g}")
            say("the losses differ: no times")
            return
        for n in rates:
            self.rows.append({"group": "ranks", "name": "1 rank" if n == 1 else name, "value": statistics.median(rates[n]), "unit": "tokens/s",
                              "least": min(rates[n]), "most": max(rates[n])})
        shares = [b / (o.ranks * a) for a, b in zip(rates[1], rates[o.ranks])]
        self.rows.append({"group": "ranks", "name": f"efficiency of {name} ({max(1, o.threads // o.ranks)} threads each)",
                          "value": statistics.median(shares), "unit": "of linear", "least": min(shares), "most": max(shares)})

    def run(self, command):
        o = self.options
        corpus = self.corpus(o.dim, o.layers)
        say(f"losses against: {command}")
        good = self.compare_losses(command, "padded, mixed lengths", corpus, "order.jsonl", "padded")
        good &= self.compare_losses(command, "packed, equal text lengths", corpus, "equal_text.jsonl", "packed")
        if not good:
            say("the losses differ: no times")
            return
        say(f"times against: {command}")
        self.compare_times(command, corpus)


def kernel_rows(options, log):
    words = [options.bench_kernels, "--json", "--threads", str(options.threads), "--repeat", "3" if options.quick else "7", "--clock",
             options.clock, "--dim", str(options.dim), "--layers", str(options.layers)]
    return json_lines(run_program(words + ["gemm", "attention", "elementwise", "loss", "optimizer", "dropout"], "bench_kernels", log))


def inner_rows(part, options, folder, log):
    words = [options.bench_train, part, "--folder", folder, "--threads", str(options.threads), "--clock", options.clock, "--dim",
             str(options.dim), "--layers", str(options.layers), "--batch", str(options.batch), "--device", options.device]
    return json_lines(run_program(words + (["--quick"] if options.quick else []), f"bench_train {part}", log))


def utilisation_rows(rows, peak):
    """Model operations of the step against what the machine can do: --peak, else the fastest product measured here."""
    result = []
    for row in rows:
        if row["name"] != "model operations per second":
            continue
        precision = row["group"].split()[1].rstrip(",")
        fastest = max((r["rate"] for r in rows if r["name"].startswith(f"gemm {precision}")), default=0)
        best = 1000 * peak if peak else fastest
        if best:
            what = f"of {peak:g} TFLOP/s" if peak else "of the fastest matrix product measured"
            result.append({"group": row["group"], "name": f"utilisation, {what}", "value": row["value"] / best, "unit": "share"})
    return result


def number(value):
    if value == 0 or 0.001 <= abs(value) < 1e5:
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.2e}"


def print_table(rows):
    group = None
    groups = list(dict.fromkeys(row["group"] for row in rows))
    for row in sorted(rows, key=lambda one: groups.index(one["group"])):
        if row["group"] != group:
            group = row["group"]
            print(f"\n{group}")
        notes = []
        if "limit" in row:
            notes.append(f"limit {number(row['limit'])}")
        if "least" in row:
            notes.append(f"{number(row['least'])} to {number(row['most'])}")
        if "grad_norm" in row:
            notes.append(f"gradient norm {number(row['grad_norm'])}, limit {number(row['grad_norm_limit'])}; loss fell by {row['mel_loss_fell_by']:.2f}")
        if "rate" in row:
            notes.append(f"{number(row['rate'])} {row['rate_unit']}")
        print(f"  {row['name']:<58} {number(row['value']):>10} {row['unit']:<18} {'; '.join(notes)}".rstrip())


def machine_facts(options):
    model = "unknown processor"
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    version = subprocess.run([options.program, "--version"], stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()
    return {"processor": model, "cores": os.cpu_count(), "threads": options.threads, "clock": options.clock, "load_at_start": os.getloadavg()[0],
            "model_dim": options.dim, "layers": options.layers, "batch": options.batch, "program": version[0] if version else ""}


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--program", required=True)
    a.add_argument("--bench-train", required=True)
    a.add_argument("--bench-kernels", required=True)
    a.add_argument("--against", action="append", default=[])
    a.add_argument("--only-against", action="store_true")
    a.add_argument("--quick", action="store_true")
    a.add_argument("--ranks", type=int, default=1)
    a.add_argument("--json", required=True, dest="json_file")
    a.add_argument("--threads", type=int, default=os.cpu_count())
    a.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    a.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    a.add_argument("--dim", type=int)
    a.add_argument("--layers", type=int)
    a.add_argument("--batch", type=int)
    a.add_argument("--peak", type=float, help="TFLOP/s of the device, for the utilisation")
    o = a.parse_args()
    size = (128, 4, 4) if o.quick else (512, 12, 4)
    o.dim, o.layers, o.batch = (given or usual for given, usual in zip((o.dim, o.layers, o.batch), size))
    o.parity_steps = 20
    o.pairs, o.timed_steps, o.untimed_steps = (2, 4, 2) if o.quick else (5, 8, 2)
    o.learning_rate, o.warmup_steps, o.total_steps = 2e-4, 2, 100000
    rows, problems, folder = [], [], tempfile.mkdtemp(prefix="train_gpt_v2_bench.")
    facts = machine_facts(o)
    try:
        with open(os.path.join(folder, "log"), "w+") as log:
            jobs = []
            if not o.only_against:
                jobs += [("kernels", lambda: kernel_rows(o, log))]
                jobs += [(part, lambda part=part: inner_rows(part, o, os.path.join(folder, part), log)) for part in ("step", "parts", "growth")]
            for what, job in jobs:
                say(what)
                os.makedirs(os.path.join(folder, what), exist_ok=True)
                try:
                    rows += job()
                except Failed as failure:
                    problems.append(f"{what}: {failure}")
            rows += utilisation_rows(rows, o.peak)
            comparison = Comparison(o, o.program, folder, log)
            for command in o.against:
                try:
                    comparison.run(command)
                except Failed as failure:
                    problems.append(str(failure))
            if o.ranks > 1:
                try:
                    comparison.scale()
                except Failed as failure:
                    problems.append(str(failure))
            rows += comparison.rows
            problems += comparison.problems
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    over = [row["name"] for row in rows if row.get("limit") is not None and row["value"] > row["limit"]]
    print(f"{facts['processor']}, {facts['threads']} threads, load {facts['load_at_start']:.1f} at the start; D = {o.dim}, {o.layers} layers, batch {o.batch}")
    print_table(rows)
    for problem in problems:
        print(f"\nfailed: {problem}")
    if over:
        print(f"\nbeyond a limit: {', '.join(over)}")
    with open(o.json_file, "w") as f:
        json.dump({"machine": facts, "rows": rows, "beyond_limit": over, "failed": problems}, f, indent=1)
        f.write("\n")
    print(f"\nthe same as JSON: {o.json_file}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
